package iamd_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/iamd"
	"github.com/netsoc/webspaced/identity/identitytest"
)

func connect(t *testing.T, s *standIn, opts *iamd.Options) *iamd.Provider {
	p, err := iamd.New(s.URL+"/v1", s.token(1, time.Hour), opts)
	require.NoError(t, err)
	return p
}

func fixture(t *testing.T) (identitytest.Fixture, *iamd.Provider) {
	s := newStandIn(t)
	p := connect(t, s, nil)
	expired := s.token(1000, -time.Second)
	revoked := s.token(1001, time.Hour)
	s.change(1001, func(a *account) { a.version++ })
	return identitytest.Fixture{
		Auth: p, Directory: p,
		Users: map[string]identity.User{
			s.token(1, time.Hour):    {ID: 1, Username: "root", Admin: true},
			s.token(1000, time.Hour): {ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"}},
			s.token(1001, time.Hour): {ID: 1001, Username: "Bob.O'Hara"},
		},
		Refused: []string{expired, revoked, s.sign(map[string]any{"sub": "1", "version": 0, "exp": 1 << 40}, []byte("another key"))},
		Away:    s.Close,
		Hang:    func() { s.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }) },
	}, p
}

func TestProvider(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		f, _ := fixture(t)
		return f
	}})
}

func TestCachedProvider(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		f, p := fixture(t)
		cache := identity.NewCache(p, p, nil)
		f.Auth, f.Directory = cache, cache
		return f
	}})
}

func TestLogOutAndDemotion(t *testing.T) {
	s := newStandIn(t)
	p := connect(t, s, nil)
	token := s.token(1000, time.Hour)
	u, err := p.Authenticate(t.Context(), token)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), u.Expires, time.Minute)

	s.change(1000, func(a *account) { a.version++ })
	_, err = p.Authenticate(t.Context(), token)
	require.True(t, errdefs.IsUnauthorized(err), "%v", err)

	// A user's rights are what iamd says now, not what the token says.
	admin := s.token(1, time.Hour)
	s.change(1, func(a *account) { a.IsAdmin = nil })
	u, err = p.Authenticate(t.Context(), admin)
	require.NoError(t, err)
	require.False(t, u.Admin)
}

// Nothing but a clear word of iamd refuses a user.
func TestEverythingElseIsUnavailable(t *testing.T) {
	const user = `{"id": 1000, "username": "alice", "ssh_key": null, "is_admin": null}`
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
		}
	}
	// valid says that the token is, and then something odd about the user.
	valid := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/token") {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			next(w, r)
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"500":                  status(500, `{"message": "oops"}`),
		"502 of a proxy":       status(502, `<html>`),
		"429":                  status(429, ``),
		"403":                  status(403, `{"message": "no"}`),
		"404 of a proxy":       status(404, `<html>not here`),
		"200 to the token":     status(200, ``),
		"redirect":             func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"connection cut":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"not JSON":             valid(status(200, `alice`)),
		"empty":                valid(status(200, ``)),
		"cut off":              valid(status(200, user[:20])),
		"a list":               valid(status(200, `[`+user+`]`)),
		"no ID":                valid(status(200, `{"username": "alice"}`)),
		"negative ID":          valid(status(200, `{"id": -1000, "username": "alice"}`)),
		"ID overflows":         valid(status(200, `{"id": 18446744073709552616, "username": "alice"}`)),
		"ID as text":           valid(status(200, `{"id": "1000", "username": "alice"}`)),
		"no username":          valid(status(200, `{"id": 1000, "username": null}`)),
		"admin as text":        valid(status(200, `{"id": 1000, "username": "alice", "is_admin": "true"}`)),
		"somebody else":        valid(status(200, `{"id": 1001, "username": "bob"}`)),
		"endless":              valid(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(" ", 1<<20)+user) }),
		"403 to whose it is":   valid(status(403, `{"message": "no"}`)),
		"404 of a user's self": valid(status(404, `<html>`)),
		"401 to our own token": valid(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/self") {
				status(500, "")(w, r)
				return
			}
			status(401, `{"message": "invalid token"}`)(w, r)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			s.Config.ErrorLog = nil
			p := connect(t, s, nil)
			token := s.token(1000, time.Hour)
			s.answer(answer)
			_, err := p.Authenticate(t.Context(), token)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.NotContains(t, err.Error(), token)
			_, err = p.ByID(t.Context(), 1000)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			_, err = p.ByUsername(t.Context(), "alice")
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.False(t, errdefs.IsUnauthorized(err) || errdefs.IsNotFound(err))
		})
	}
}

// One odd claim does not hide the others.
func TestClaims(t *testing.T) {
	s := newStandIn(t)
	p := connect(t, s, nil)
	s.answer(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		fmt.Fprint(w, `{"id": 1000, "username": "alice"}`)
	})
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	for name, c := range map[string]struct {
		sub, exp any
		expires  time.Time
		bad      error
	}{
		"text and whole":      {sub: "1000", exp: end.Unix(), expires: end},
		"number and fraction": {sub: 1000, exp: float64(end.Unix()) + 0.5, expires: end},
		"neither":             {},
		"another's number":    {sub: 1001, exp: end.Unix(), bad: errdefs.ErrUnavailable},
		"another's text":      {sub: "1001", exp: float64(end.Unix()) + 0.5, bad: errdefs.ErrUnavailable},
		"another, odd end":    {sub: "1001", exp: "soon", bad: errdefs.ErrUnavailable},
		"odd subject":         {sub: []string{"1000"}, exp: end.Unix(), bad: errdefs.ErrUnavailable},
		"odd end":             {sub: "1000", exp: "soon", bad: errdefs.ErrUnavailable},
		"odd subject, over":   {sub: true, exp: 1.5, bad: errdefs.ErrUnauthenticated},
		"over before 1970":    {sub: "1000", exp: -1, bad: errdefs.ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := p.Authenticate(t.Context(), s.sign(map[string]any{"sub": c.sub, "exp": c.exp}, s.key))
			require.ErrorIs(t, err, c.bad)
			if c.bad == nil {
				require.Equal(t, identity.UserID(1000), u.ID)
				require.True(t, c.expires.Equal(u.Expires), "%v", u.Expires)
			}
		})
	}
}

// Iamd is not asked about what can not be a token of its, or is one no longer.
func TestRefusedUnasked(t *testing.T) {
	s := newStandIn(t)
	p := connect(t, s, nil)
	for name, token := range map[string]string{
		"empty": "", "opaque": "secret", "two parts": "e30.e30", "four parts": "e30.e30.e30.e30", "empty part": "e30.e30.",
		"not base64url": "e30.e30.a+b/", "padded": "e30.e30.e30=", "line end": "e30.e30.e30\n", "payload not JSON": "e30.e30x.e30",
		"payload null": "e30.bnVsbA.e30", "payload a list": "e30.W10.e30",
		"too long": "e30.e30." + strings.Repeat("a", identity.MaxToken), "over": s.token(1000, -time.Second),
	} {
		_, err := p.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnauthorized(err), "%s: %v", name, err)
	}
	require.Empty(t, s.requests())
}

func TestSlowAnswer(t *testing.T) {
	s := newStandIn(t)
	p := connect(t, s, &iamd.Options{Timeout: 50 * time.Millisecond})
	token := s.token(1000, time.Hour)
	s.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	_, err := p.Authenticate(t.Context(), token)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	_, err = p.ByID(t.Context(), 1000)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
}

func TestTokensStayWithIamd(t *testing.T) {
	var strayed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed.Add(1) }))
	defer other.Close()
	s := newStandIn(t)
	p := connect(t, s, nil)
	token := s.token(1000, time.Hour)
	s.answer(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	_, err := p.Authenticate(t.Context(), token)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	_, err = p.ByID(t.Context(), 1000)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.Zero(t, strayed.Load())
}

// A username is one segment of the path, whatever is in it; and the user's own token is never used to look others up, nor
// ours for what only the user may ask.
func TestPathsAndTokens(t *testing.T) {
	s := newStandIn(t)
	admin := s.token(1, time.Hour)
	p, err := iamd.New(s.URL+"/v1/", admin, nil)
	require.NoError(t, err)
	for _, name := range []string{"a/b", "../../admin", "a?b", "a#b", "a%2fb", "a b", "a\r\nHost: x", "\x00", "ünïcode", "a;b", "a\\..\\b"} {
		_, err := p.ByUsername(t.Context(), name)
		require.True(t, errdefs.IsNotFound(err), "%q: %v", name, err)
	}
	for _, path := range s.requests() {
		rest, ok := strings.CutPrefix(path, "/v1/users/")
		require.True(t, ok && !strings.ContainsAny(rest, "/ ") && rest != "..", "%q", path)
	}
	require.Equal(t, map[string]bool{"Bearer " + admin: true}, s.tokens)

	before := len(s.requests())
	for _, name := range []string{"", ".", "..", "self", "SELF", "id:1", "Id:1000", strings.Repeat("x", 256)} {
		_, err := p.ByUsername(t.Context(), name)
		require.True(t, errdefs.IsNotFound(err), "%q: %v", name, err)
	}
	require.Len(t, s.requests(), before, "asked for what can be no username")

	alice := s.token(1000, time.Hour)
	s.mu.Lock()
	clear(s.tokens)
	s.mu.Unlock()
	_, err = p.Authenticate(t.Context(), alice)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"Bearer " + alice: true}, s.tokens)
}

func TestTLS(t *testing.T) {
	s := newStandIn(t)
	secure := httptest.NewTLSServer(s)
	defer secure.Close()
	secure.Config.ErrorLog = nil
	token := s.token(1, time.Hour)
	p, err := iamd.New(secure.URL+"/v1", token, nil)
	require.NoError(t, err)
	_, err = p.Authenticate(t.Context(), token)
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	p, err = iamd.New(secure.URL+"/v1", token, &iamd.Options{InsecureSkipVerify: true})
	require.NoError(t, err)
	_, err = p.Authenticate(t.Context(), token)
	require.NoError(t, err)
}

func TestNewRefuses(t *testing.T) {
	for _, base := range []string{"", "iam.example.org", "ftp://iam.example.org", "https://", "https://u:p@iam.example.org", "https://iam.example.org/?a=b", "https://iam.example.org/#f"} {
		_, err := iamd.New(base, "token", nil)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", base, err)
	}
	for _, token := range []string{"", "a b", "a\nb", strings.Repeat("x", 9000)} {
		_, err := iamd.New("https://iam.example.org/v1", token, nil)
		require.True(t, errdefs.IsInvalidArgument(err), "%.10q: %v", token, err)
	}
}

func ExampleNew() {
	provider, err := iamd.New("https://iam.example.org/v1", "an-admins-token", nil)
	if err != nil {
		panic(err)
	}
	users := identity.NewCache(provider, provider, nil)
	_ = users // an identity.Authenticator and an identity.Directory
	// Output:
}
