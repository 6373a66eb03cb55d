package access_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/openapi/internal/access"
)

// fickle says what it is told to of everybody.
type fickle struct{ err atomic.Pointer[error] }

func (f *fickle) set(err error) { f.err.Store(&err) }

func (f *fickle) Authenticate(context.Context, string) (identity.User, error) {
	if err := f.err.Load(); err != nil && *err != nil {
		return identity.User{}, *err
	}
	return identity.User{ID: 1000, Username: "alice"}, nil
}

// A log-out ends a session within the interval, however fresh what the cache has, and an outage ends none.
func TestSessionAsksThroughTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Second
		users := new(fickle)
		cache := identity.NewCache(users, nil, &identity.CacheOptions{TTL: ttl})
		gate := access.NewGate(nil, cache, nil)
		ctx, err := gate.Authenticate(t.Context(), "token")
		require.NoError(t, err)
		_, session, stop, err := gate.Session(ctx, access.Self, ttl)
		require.NoError(t, err)
		defer stop()

		users.set(errdefs.ErrUnavailable)
		time.Sleep(10*ttl + ttl/2)
		require.NoError(t, session.Err())

		users.set(nil)
		_, err = cache.Authenticate(ctx, "token") // somebody's request renews what the cache has
		require.NoError(t, err)
		users.set(errdefs.ErrUnauthenticated)
		loggedOut := time.Now()
		<-session.Done()
		require.LessOrEqual(t, time.Since(loggedOut), ttl)
		require.ErrorIs(t, context.Cause(session), errdefs.ErrUnauthenticated)
	})
}
