package openapi_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// failure is an error that every call of a runtime returns while it is set.
type failure struct {
	mu  sync.Mutex
	err error
}

func (f *failure) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failure) before(_ context.Context, op, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || op == "Watch" {
		return nil
	}
	return errors.Join(errors.New(op), f.err)
}

// serveAPI serves a as the daemon does, and returns its URL.
func serveAPI(t *testing.T, a *api) string {
	t.Helper()
	server := httptest.NewUnstartedServer(a)
	server.Config.ReadTimeout = 100 * time.Millisecond
	server.Config.WriteTimeout = 200 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

func createAlice(t *testing.T, a *api) {
	t.Helper()
	_, err := a.manager.Create(t.Context(), accounts[0].User, webspace.CreateRequest{Image: "hello"})
	require.NoError(t, err)
}

func follower(t *testing.T, url, token string) (kinds <-chan string, ended <-chan error) {
	t.Helper()
	c, err := openapi.Connect(url, token, nil)
	require.NoError(t, err)
	k, e := make(chan string, 100), make(chan error, 1)
	go func() { e <- c.FollowEvents(t.Context(), "alice", func(n openapi.Notice) { k <- n.Kind }) }()
	return k, e
}

func await(t *testing.T, kinds <-chan string, kind string) {
	t.Helper()
	for {
		select {
		case k := <-kinds:
			if k == kind {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no notice %q", kind)
		}
	}
}

func TestEvents(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	kinds, ended := follower(t, serveAPI(t, a), "alice-token")
	await(t, kinds, "stopped")
	// The server's time limits for other requests are long over by then.
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, a.manager.Start(t.Context(), 1000))
	await(t, kinds, "starting")
	_, err := a.manager.AddPort(t.Context(), 1000, 0, 22)
	require.NoError(t, err)
	await(t, kinds, "ports")
	require.NoError(t, a.manager.Delete(t.Context(), 1000))
	await(t, kinds, "deleted")
	require.True(t, errdefs.IsNotFound(<-ended))
}

func TestEventsEndWithTheServer(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	url := serveAPI(t, a)
	kinds, ended := follower(t, url, "alice-token")
	await(t, kinds, "stopped")
	require.NoError(t, a.server.Shutdown(t.Context()))
	err := <-ended
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "shutting down")
	_, ended = follower(t, url, "alice-token")
	require.True(t, errdefs.IsUnavailable(<-ended), "nobody is let in any more")
	require.NoError(t, a.server.Shutdown(t.Context()), "a second time")
}

func TestEventsEndWithTheToken(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	kinds, ended := follower(t, serveAPI(t, a), "alice-token;exp="+strconv.FormatInt(time.Now().Add(2*time.Second).Unix(), 10))
	select {
	case err := <-ended: // the machine is slow, and it had expired before
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
		return
	case kind := <-kinds:
		require.Equal(t, "stopped", kind)
	}
	require.True(t, errdefs.IsUnauthorized(<-ended))
}

func TestEventsAreCounted(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	url := serveAPI(t, a)
	for range 16 {
		kinds, _ := follower(t, url, "alice-token")
		await(t, kinds, "stopped")
	}
	_, ended := follower(t, url, "alice-token")
	require.True(t, errdefs.IsResourceExhausted(<-ended))
	_, ended = follower(t, url, "admin-token")
	require.True(t, errdefs.IsResourceExhausted(<-ended), "of one webspace, whoever asks")
}

// TestEventsRecheck has a user lose their rights while they follow; the provider's absence changes nothing.
func TestEventsRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIOn(t, runtimetest.NewFake(nil), &openapi.Options{Recheck: time.Minute})
		users := &changing{provider: newUsers(t)}
		server := openapi.NewServer(a.manager, users, users, &openapi.Options{Logger: quiet, Recheck: time.Minute})
		createAlice(t, a)
		body := new(lockedBuffer)
		done := make(chan struct{})
		go func() {
			defer close(done)
			req := httptest.NewRequest("GET", "/v1/webspace/alice/events", nil)
			req.Header.Set("Authorization", "Bearer admin-token")
			server.ServeHTTP(streamWriter{body, make(http.Header)}, req)
		}()
		time.Sleep(90 * time.Second)
		require.GreaterOrEqual(t, strings.Count(body.String(), "\n:\n"), 5, "heartbeats: %s", body.String())
		users.set(errdefs.ErrUnavailable, false)
		time.Sleep(10 * time.Minute)
		require.NotContains(t, body.String(), "event: end")
		users.set(nil, true)
		<-done
		require.Contains(t, body.String(), "event: end")
		require.Contains(t, body.String(), "permission_denied")
	})
}

// changing is an identity provider that goes away, or demotes everybody.
type changing struct {
	provider
	mu      sync.Mutex
	err     error
	demoted bool
}

func (c *changing) set(err error, demoted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.demoted = err, demoted
}

func (c *changing) Authenticate(ctx context.Context, token string) (user identity.User, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return user, c.err
	}
	user, err = c.provider.Authenticate(ctx, token)
	user.Admin = user.Admin && !c.demoted
	return user, err
}

// streamWriter is a ResponseWriter for a goroutine of its own.
type streamWriter struct {
	io.Writer
	header http.Header
}

func (s streamWriter) Header() http.Header { return s.header }
func (s streamWriter) WriteHeader(int)     {}
func (s streamWriter) Flush()              {}
