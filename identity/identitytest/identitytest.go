// Package identitytest is a conformance suite for identity providers: it holds an [identity.Authenticator] and an
// [identity.Directory] to what these interfaces promise.
package identitytest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
)

// Harness makes the provider under test.
type Harness struct {
	// New returns a provider with at least two users, for one test.
	New func(t *testing.T) Fixture
}

// Fixture is a provider that works, and what it should know.
type Fixture struct {
	Auth      identity.Authenticator
	Directory identity.Directory
	// Users by a token that is theirs. Expires is not compared.
	Users map[string]identity.User
	// Refused are tokens that look right and are not: expired, revoked, of another issuer.
	Refused []string
	// Away puts the provider out of reach, for good. Nil if it can not be.
	Away func()
	// Hang makes the provider take requests and answer none until the test ends. Nil if it can not be.
	Hang func()
}

// Run runs the suite. Each subtest has a provider of its own.
func Run(t *testing.T, h Harness) {
	for name, test := range map[string]func(*testing.T, Fixture){
		"tokens":      tokens,
		"refusals":    refusals,
		"directory":   directory,
		"strangers":   strangers,
		"copies":      copies,
		"context":     ending,
		"concurrency": concurrency,
		"away":        away,
		"hang":        hang,
	} {
		t.Run(name, func(t *testing.T) { test(t, h.New(t)) })
	}
}

func tokens(t *testing.T, f Fixture) {
	require.GreaterOrEqual(t, len(f.Users), 2)
	for range 2 { // the second answer is as good as the first
		for token, want := range f.Users {
			got, err := f.Auth.Authenticate(t.Context(), token)
			require.NoError(t, err)
			if !got.Expires.IsZero() {
				require.True(t, got.Expires.After(time.Now()), "a token that has ended was accepted")
			}
			got.Expires = time.Time{}
			require.Equal(t, want, got)
		}
	}
}

func refusals(t *testing.T, f Fixture) {
	bad := append([]string{
		"", " ", "x", "a.b.c", "..", "null", "\x00", "\r\nX-Injected: yes", "ünïcode", "\xff\xfe",
		strings.Repeat("x", 1<<20), strings.Repeat("a", identity.MaxToken+1),
	}, f.Refused...)
	for token := range f.Users {
		bad = append(bad, token+"x", " "+token, token+" ", token+"\n", token[:len(token)-1], strings.ToUpper(token)+strings.ToLower(token), token+","+token)
	}
	for _, token := range bad {
		for range 2 {
			user, err := f.Auth.Authenticate(t.Context(), token)
			require.Truef(t, errdefs.IsUnauthorized(err), "token %.80q: %v", token, err)
			require.Zero(t, user)
			if len(token) > 20 {
				require.NotContains(t, err.Error(), token, "the error has the token in it")
			}
		}
	}
}

// introduce has every user seen once: some providers know no others.
func introduce(t *testing.T, f Fixture) {
	for token := range f.Users {
		_, err := f.Auth.Authenticate(t.Context(), token)
		require.NoError(t, err)
	}
}

func directory(t *testing.T, f Fixture) {
	introduce(t, f)
	for _, want := range f.Users {
		got, err := f.Directory.ByID(t.Context(), want.ID)
		require.NoError(t, err)
		require.Equal(t, want, got)
		got, err = f.Directory.ByUsername(t.Context(), want.Username)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func strangers(t *testing.T, f Fixture) {
	introduce(t, f)
	_, learns := f.Directory.(identity.Learner)
	check := func(user identity.User, err error, who any) {
		require.Zero(t, user, "%.80q", who)
		if learns {
			require.Truef(t, errdefs.IsUnavailable(err), "a directory that knows but some users says of %.80q: %v", who, err)
		} else {
			require.Truef(t, errdefs.IsNotFound(err), "%.80q: %v", who, err)
		}
	}
	for _, id := range []identity.UserID{-1, 0, 424242, 1<<63 - 1} {
		user, err := f.Directory.ByID(t.Context(), id)
		check(user, err, id)
	}
	names := []string{
		"", "nobody", ".", "..", "../1", "id:1", "ID:1", "self", "Self", "self/token", "a/b", "a?b=c", "a#b", "%2e%2e", "%2Fself", "a\\b",
		"\x00", "a\nb", "\xff", strings.Repeat("x", 1<<16),
	}
	for _, user := range f.Users {
		names = append(names, "id:"+user.ID.String(), user.ID.String(), user.Username+"/", user.Username+"?", user.Username+"/../self", " "+user.Username)
	}
	for _, name := range names {
		user, err := f.Directory.ByUsername(t.Context(), name)
		check(user, err, name)
	}
}

func copies(t *testing.T, f Fixture) {
	introduce(t, f)
	for token, want := range f.Users {
		keys := slices.Clone(want.SSHKeys) // the fixture may share them with the provider
		asks := map[string]func() (identity.User, error){
			"Authenticate": func() (identity.User, error) { return f.Auth.Authenticate(t.Context(), token) },
			"ByID":         func() (identity.User, error) { return f.Directory.ByID(t.Context(), want.ID) },
			"ByUsername":   func() (identity.User, error) { return f.Directory.ByUsername(t.Context(), want.Username) },
		}
		for name, ask := range asks {
			for range 2 {
				got, err := ask()
				require.NoError(t, err)
				require.Equal(t, keys, got.SSHKeys, "%s gives what its caller has changed", name)
				for i := range got.SSHKeys {
					got.SSHKeys[i] = "changed"
				}
			}
		}
	}
}

func ending(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for token, user := range f.Users {
		_, err := f.Auth.Authenticate(ctx, token)
		require.ErrorIs(t, err, context.Canceled)
		_, err = f.Directory.ByID(ctx, user.ID)
		require.ErrorIs(t, err, context.Canceled)
		_, err = f.Directory.ByUsername(ctx, user.Username)
		require.ErrorIs(t, err, context.Canceled)
	}
	tokens(t, f) // who has left spoils nothing for others
}

func concurrency(t *testing.T, f Fixture) {
	var wg sync.WaitGroup
	for token, want := range f.Users {
		for range 8 {
			wg.Go(func() {
				got, err := f.Auth.Authenticate(t.Context(), token)
				if err != nil || got.ID != want.ID {
					t.Errorf("token of user %d: user %d, %v", want.ID, got.ID, err)
				}
				got, err = f.Directory.ByID(t.Context(), want.ID)
				if err != nil || got.ID != want.ID {
					t.Errorf("user %d: user %d, %v", want.ID, got.ID, err)
				}
			})
		}
	}
	wg.Wait()
}

func away(t *testing.T, f Fixture) {
	if f.Away == nil {
		t.Skip("this provider is always there")
	}
	f.Away()
	for token, user := range f.Users {
		got, err := f.Auth.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.False(t, errors.Is(err, context.DeadlineExceeded), "a deadline of the provider's own is not the caller's")
		require.Zero(t, got)
		_, err = f.Directory.ByID(t.Context(), user.ID)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		_, err = f.Directory.ByUsername(t.Context(), user.Username)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
	}
}

func hang(t *testing.T, f Fixture) {
	if f.Hang == nil {
		t.Skip("this provider asks nobody")
	}
	f.Hang()
	for token := range f.Users {
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(50*time.Millisecond, func() { cancel(nil) })
		_, err := f.Auth.Authenticate(ctx, token)
		require.ErrorIs(t, err, context.Canceled)
		timer.Stop()
	}
}
