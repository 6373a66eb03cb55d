package oidc_test

import (
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/identitytest"
	"github.com/netsoc/webspaced/identity/oidc"
)

const issuer = "https://accounts.example.test"

func connect(t *testing.T, issuer string, transport http.RoundTripper) *oidc.Provider {
	p, err := oidc.New(issuer, "webspaced", &oidc.Options{
		IDClaim: "uid_number", AdminClaim: "realm_access.roles", AdminValue: "webspace-admins", SSHKeyClaim: "keys",
		Transport: transport, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestConformance(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		s := newSociety(t, issuer)
		p := connect(t, issuer, s)
		alice := login(t, s, s, "webspaced", "alice", "correct horse")
		root := login(t, s, s, "webspaced", "root", "battery staple")
		elsewhere := login(t, s, s, "dashboard", "alice", "correct horse")
		another := newSociety(t, issuer)
		return identitytest.Fixture{
			Auth: p, Directory: p,
			Users: map[string]identity.User{
				idToken(alice):    {ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"}},
				alice.AccessToken: {ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"}},
				idToken(root):     {ID: 1, Username: "root", Admin: true},
			},
			Refused: []string{
				idToken(elsewhere), elsewhere.AccessToken,
				idToken(login(t, another, another, "webspaced", "root", "battery staple")),
			},
		}
	}})
}

func TestProviderOverTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSociety(t, issuer)
		s.set(func(s *society) { s.down = true })
		p := connect(t, issuer, s)
		s.set(func(s *society) { s.down = false })
		sign := func() string { return idToken(login(t, s, s, "webspaced", "alice", "correct horse")) }
		first := sign()
		time.Sleep(time.Minute)
		u, err := p.Authenticate(t.Context(), first)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(time.Hour), u.Expires, 2*time.Minute)

		// Another key; both are good until the old one is withdrawn.
		time.Sleep(time.Minute)
		s.rotate(t)
		second := sign()
		for _, token := range []string{second, first} {
			_, err = p.Authenticate(t.Context(), token)
			require.NoError(t, err)
		}

		// A provider that is slow, then away: who has a token does not notice.
		s.set(func(s *society) { s.delay = time.Minute })
		time.Sleep(40 * time.Minute)
		_, err = p.Authenticate(t.Context(), second)
		require.NoError(t, err)
		s.set(func(s *society) { s.delay, s.down = 0, true })
		time.Sleep(5 * time.Minute)
		_, err = p.Authenticate(t.Context(), second)
		require.NoError(t, err)
		time.Sleep(20 * time.Minute)
		_, err = p.Authenticate(t.Context(), second)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)

		s.set(func(s *society) { s.down, s.keys = false, s.keys[1:] })
		time.Sleep(time.Minute)
		_, err = p.Authenticate(t.Context(), second)
		require.True(t, errdefs.IsUnauthorized(err), "the token is over an hour old: %v", err)
		_, err = p.Authenticate(t.Context(), sign())
		require.NoError(t, err)
		require.NoError(t, p.Close())
	})
}
