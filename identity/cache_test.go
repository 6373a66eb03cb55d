package identity_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
)

// oracle is a provider that counts what it is asked, takes its time, and says what it is told to.
type oracle struct {
	mu    sync.Mutex
	asked map[string]int
	delay time.Duration
	user  identity.User
	err   error
}

func newOracle() *oracle {
	return &oracle{asked: make(map[string]int), user: identity.User{ID: 1000, Username: "alice", SSHKeys: []string{"key"}}}
}

func (o *oracle) set(user identity.User, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.user, o.err = user, err
}

func (o *oracle) count(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[what]
}

func (o *oracle) ask(ctx context.Context, what string) (identity.User, error) {
	o.mu.Lock()
	o.asked[what]++
	user, err, delay := o.user, o.err, o.delay
	o.mu.Unlock()
	select {
	case <-time.After(delay):
		return user, err
	case <-ctx.Done():
		return identity.User{}, ctx.Err()
	}
}

func (o *oracle) Authenticate(ctx context.Context, token string) (identity.User, error) {
	return o.ask(ctx, "token "+token)
}

func (o *oracle) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	return o.ask(ctx, "id "+id.String())
}

func (o *oracle) ByUsername(ctx context.Context, name string) (identity.User, error) {
	return o.ask(ctx, "name "+name)
}

func TestCacheAsksOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, nil)
		for range 3 {
			for _, ask := range []func() (identity.User, error){
				func() (identity.User, error) { return c.Authenticate(t.Context(), "1000") },
				func() (identity.User, error) { return c.ByID(t.Context(), 1000) },
				func() (identity.User, error) { return c.ByUsername(t.Context(), "1000") },
			} {
				u, err := ask()
				require.NoError(t, err)
				require.Equal(t, "alice", u.Username)
			}
			time.Sleep(9 * time.Second)
		}
		require.Equal(t, map[string]int{"token 1000": 1, "id 1000": 1, "name 1000": 1}, o.asked)

		o.set(identity.User{}, fmt.Errorf("logged out: %w", errdefs.ErrUnauthenticated))
		time.Sleep(3 * time.Second)
		_, err := c.Authenticate(t.Context(), "1000")
		require.True(t, errdefs.IsUnauthorized(err), "an answer is used for longer than 30 s")
	})
}

// What counts is when the question was asked: the answer may have been under way for long.
func TestCacheCountsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		o.delay = 4 * time.Second
		c := identity.NewCache(o, o, &identity.CacheOptions{TTL: 5 * time.Second})
		for range 2 {
			_, err := c.ByID(t.Context(), 1)
			require.NoError(t, err)
		}
		require.Equal(t, 1, o.count("id 1"))
		time.Sleep(time.Second)
		_, err := c.ByID(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 2, o.count("id 1"))
	})
}

func TestCacheWhileTheProviderIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, nil)
		_, err := c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
		o.set(identity.User{}, errdefs.ErrUnavailable)
		time.Sleep(29 * time.Second)
		u, err := c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
		require.Equal(t, identity.UserID(1000), u.ID)
		time.Sleep(time.Second)
		for range 100 { // a burst is one question
			_, err = c.Authenticate(t.Context(), "t")
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
		require.Equal(t, 2, o.count("token t"))
		o.set(identity.User{ID: 1000, Username: "alice"}, nil)
		time.Sleep(time.Second)
		_, err = c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
	})
}

func TestCacheEndsWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, nil)
		o.set(identity.User{ID: 1, Username: "alice", Expires: time.Now().Add(5 * time.Second)}, nil)
		_, err := c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		o.set(identity.User{}, errdefs.ErrUnauthenticated)
		_, err = c.Authenticate(t.Context(), "t")
		require.True(t, errdefs.IsUnauthorized(err))
	})
}

func TestCacheHasOneFlightPerQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		o.delay = 10 * time.Second
		c := identity.NewCache(o, o, nil)
		var wg sync.WaitGroup
		first, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			_, err := c.Authenticate(first, "t")
			require.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		for range 100 {
			wg.Go(func() {
				_, err := c.Authenticate(t.Context(), "t")
				require.NoError(t, err)
			})
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Authenticate(impatient, "t")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		leave()
		_, err = c.Authenticate(t.Context(), "another") // does not wait for the first
		require.NoError(t, err)
		wg.Wait()
		require.LessOrEqual(t, o.count("token t"), 2, "one asked and left, one asked for all others")
	})
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, &identity.CacheOptions{Size: 10})
		for i := range 1000 {
			_, err := c.ByUsername(t.Context(), "alice") // used all the while, so kept
			require.NoError(t, err)
			_, err = c.ByID(t.Context(), identity.UserID(i+1))
			require.NoError(t, err)
		}
		require.Equal(t, 1, o.count("name alice"))
		_, err := c.ByID(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 2, o.count("id 1"))
	})
}

// Made-up tokens push out no user, who is needed while the provider is away.
func TestCacheKeepsUsersFromRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, &identity.CacheOptions{Size: 10})
		_, err := c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
		o.set(identity.User{}, errdefs.ErrUnauthenticated)
		for i := range 2000 {
			for range 2 {
				_, err = c.Authenticate(t.Context(), fmt.Sprint("junk", i))
				require.True(t, errdefs.IsUnauthorized(err))
			}
		}
		require.Equal(t, 1, o.count("token junk1999"), "a refusal is not kept at all")
		_, err = c.Authenticate(t.Context(), "junk0")
		require.True(t, errdefs.IsUnauthorized(err))
		require.Equal(t, 2, o.count("token junk0"), "all refusals are kept")
		o.set(identity.User{}, errdefs.ErrUnavailable)
		_, err = c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
	})
}

func TestCacheFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		c := identity.NewCache(o, o, nil)
		_, err := c.Authenticate(t.Context(), "t")
		require.NoError(t, err)

		// A provider that is away takes nothing from what is known.
		o.set(identity.User{}, errdefs.ErrUnavailable)
		_, err = c.Fresh(t.Context(), "t")
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		_, err = c.Authenticate(t.Context(), "t")
		require.NoError(t, err)

		// What it says is known to all.
		o.set(identity.User{ID: 1000, Username: "alice", Admin: true}, nil)
		u, err := c.Fresh(t.Context(), "t")
		require.NoError(t, err)
		require.True(t, u.Admin)
		time.Sleep(20 * time.Second)
		u, err = c.Authenticate(t.Context(), "t")
		require.NoError(t, err)
		require.True(t, u.Admin)
		o.set(identity.User{}, errdefs.ErrUnauthenticated)
		_, err = c.Fresh(t.Context(), "t")
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
		_, err = c.Authenticate(t.Context(), "t")
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
		require.Equal(t, 4, o.count("token t"))
	})
}

// Who comes while the provider is being asked may know of something newer, so they wait for the next answer: all for one.
func TestCacheFreshHasOneFlight(t *testing.T) {
	for _, away := range []error{nil, errdefs.ErrUnavailable} {
		synctest.Test(t, func(t *testing.T) {
			o := newOracle()
			o.delay = 500 * time.Millisecond
			o.set(identity.User{ID: 1000, Username: "alice"}, away)
			c := identity.NewCache(o, o, nil)
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					_, err := c.Fresh(t.Context(), "t")
					require.ErrorIs(t, err, away)
				})
			}
			wg.Wait()
			require.Equal(t, 2, o.count("token t"))
		})
	}
}

// An error that says nothing about the user is not an answer.
func TestCacheForgetsOtherErrors(t *testing.T) {
	o := newOracle()
	c := identity.NewCache(o, o, nil)
	o.set(identity.User{}, errors.New("a bug"))
	_, err := c.ByID(t.Context(), 1)
	require.Error(t, err)
	o.set(identity.User{ID: 1}, nil)
	_, err = c.ByID(t.Context(), 1)
	require.NoError(t, err)
}

func TestKeyLines(t *testing.T) {
	require.Equal(t, []string{"ssh-rsa A a@b", "ssh-ed25519 B"}, identity.KeyLines("\n# mine\n ssh-rsa A a@b \r\n\r\nssh-ed25519 B"))
	require.Empty(t, identity.KeyLines(" \n"))
}
