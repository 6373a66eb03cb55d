package oidc_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func serve(t *testing.T, handler http.Handler) string {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

// FuzzToken accepts nothing but what the issuer has signed. The last part may differ in bits that do not count.
func FuzzToken(f *testing.F) {
	p := connect(f, newIssuer())
	signed := make(map[string]bool)
	// Fuzzing goes on in several processes, for all of which one token has to be the same.
	always := with(values{"uid_number": 1, "groups": "admins", "iat": 1, "exp": 1 << 32})
	for _, token := range []string{
		issue(always),
		mint(values{"alg": "ES256", "kid": "e1"}, always, es256),
		mint(values{"alg": "EdDSA", "kid": "d1"}, always, eddsa),
	} {
		signed[token[:strings.LastIndex(token, ".")]] = true
		f.Add(token)
	}
	f.Add(mint(values{"alg": "none"}, with(nil), func([]byte) []byte { return nil }))
	f.Add(mint(values{"alg": "HS256", "kid": "r1"}, with(nil), func([]byte) []byte { return []byte("x") }))
	f.Fuzz(func(t *testing.T, token string) {
		_, err := p.Authenticate(t.Context(), token)
		if err == nil {
			require.True(t, signed[token[:strings.LastIndex(token, ".")]], "accepted %q", token)
		} else {
			require.True(t, errdefs.IsUnauthorized(err), "%v", err)
		}
	})
}

// FuzzClaims signs whatever there is: only a user who makes sense comes out.
func FuzzClaims(f *testing.F) {
	p := connect(f, newIssuer())
	for _, claims := range []values{
		with(nil), with(values{"groups": []string{"admins"}}), with(values{"exp": 1e300}), with(values{"AUD": audience}),
		with(values{"_claim_names": values{"groups": "src1"}, "_claim_sources": values{"src1": values{"endpoint": "https://evil.example"}}}),
	} {
		f.Add(must(json.Marshal(claims)))
	}
	f.Fuzz(func(t *testing.T, claims []byte) {
		u, err := p.Authenticate(t.Context(), mint(values{"alg": "EdDSA", "kid": "d1"}, claims, eddsa))
		if err != nil {
			require.True(t, errdefs.IsUnauthorized(err), "%v", err)
			return
		}
		require.Positive(t, u.ID)
		require.NotEmpty(t, u.Username)
		require.True(t, u.Expires.After(time.Now()))
		var object map[string]any
		require.NoError(t, json.Unmarshal(claims, &object))
		require.Equal(t, issuerURL, object["iss"])
		if u.Admin {
			require.Contains(t, string(must(json.Marshal(object["groups"]))), "admins")
		}
	})
}
