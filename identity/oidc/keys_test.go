package oidc_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity/oidc"
)

// unknown is a token with a key that nobody knows.
func unknown(n int) string {
	return mint(values{"alg": "EdDSA", "kid": fmt.Sprintf("k%d", n)}, with(nil), func([]byte) []byte { return make([]byte, 64) })
}

func TestUnknownKeysAreNotAskedForEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		p := connect(t, i)
		good := issue(with(nil))
		var wg sync.WaitGroup
		for worker := range 10 {
			wg.Go(func() {
				for n := range 1000 {
					_, err := p.Authenticate(t.Context(), unknown(1000*worker+n))
					require.True(t, errdefs.IsUnauthorized(err), "%v", err)
				}
			})
		}
		wg.Wait()
		_, err := p.Authenticate(t.Context(), good)
		require.NoError(t, err)
		require.LessOrEqual(t, i.keyFetches(), 2)

		before := i.keyFetches()
		for range 60 { // a minute of it
			_, err := p.Authenticate(t.Context(), unknown(1))
			require.True(t, errdefs.IsUnauthorized(err), "%v", err)
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, i.keyFetches()-before, 2)
		require.NoError(t, p.Close())
	})
}

// Who leaves at once must not use up the fetch that others wait for.
func TestFetchBelongsToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		p := connect(t, i)
		_, err := p.Authenticate(t.Context(), issue(with(nil)))
		require.NoError(t, err)
		time.Sleep(31 * time.Second)
		fresh := must(rsa.GenerateKey(rand.Reader, 2048))
		i.set(func(i *issuer) {
			i.delay = 5 * time.Second
			i.keys = append(i.keys, jose.JSONWebKey{Key: fresh.Public(), KeyID: "r2"})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = p.Authenticate(ctx, unknown(1))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = p.Authenticate(t.Context(), mint(values{"alg": "RS256", "kid": "r2"}, with(nil), rs256(fresh)))
		require.NoError(t, err)
		require.Equal(t, 2, i.keyFetches())
		require.NoError(t, p.Close())
	})
}

func TestKeysRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		p := connect(t, i)
		claims := with(values{"exp": time.Now().Add(24 * time.Hour).Unix()})
		old := issue(claims)
		_, err := p.Authenticate(t.Context(), old)
		require.NoError(t, err)
		time.Sleep(time.Minute)

		fresh := must(rsa.GenerateKey(rand.Reader, 2048))
		i.set(func(i *issuer) { i.keys = []jose.JSONWebKey{{Key: fresh.Public(), KeyID: "r2"}} })
		_, err = p.Authenticate(t.Context(), mint(values{"alg": "RS256", "kid": "r2"}, claims, rs256(fresh)))
		require.NoError(t, err, "a new key is not found at once")
		_, err = p.Authenticate(t.Context(), old)
		require.True(t, errdefs.IsUnauthorized(err), "a key that was withdrawn is used: %v", err)

		// A key that is withdrawn without another to show for it is noticed by age.
		i.set(func(i *issuer) { i.keys = []jose.JSONWebKey{{Key: rogue().Public(), KeyID: "r3"}} })
		time.Sleep(31 * time.Minute)
		withdrawn := mint(values{"alg": "RS256", "kid": "r2"}, claims, rs256(fresh))
		_, _ = p.Authenticate(t.Context(), withdrawn) // has the keys read, and does not wait for them
		synctest.Wait()
		_, err = p.Authenticate(t.Context(), withdrawn)
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
		require.NoError(t, p.Close())
	})
}

func TestIssuerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		i.err = errDown
		p := connect(t, i) // starts all the same
		claims := with(values{"exp": time.Now().Add(24 * time.Hour).Unix()})
		token := issue(claims)
		for range 100 {
			_, err := p.Authenticate(t.Context(), token)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
		require.LessOrEqual(t, i.requests, 2)
		for range 600 { // ten minutes of someone trying
			_, err := p.Authenticate(t.Context(), token)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, i.requests, 30)

		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(30 * time.Second)
		_, err := p.Authenticate(t.Context(), token)
		require.NoError(t, err)

		// Tokens of known keys go on for a while; nobody is refused because the issuer is away.
		i.set(func(i *issuer) { i.err = errDown })
		for range 59 {
			time.Sleep(time.Minute)
			_, err = p.Authenticate(t.Context(), token)
			require.NoError(t, err)
			_, err = p.Authenticate(t.Context(), mint(values{"alg": "RS256", "kid": "r1"}, claims, rs256(rogue())))
			require.True(t, errdefs.IsUnauthorized(err), "the key is known, and did not sign this: %v", err)
		}
		_, err = p.Authenticate(t.Context(), unknown(1))
		require.True(t, errdefs.IsUnavailable(err), "nobody knows whether the key is the issuer's: %v", err)
		time.Sleep(2 * time.Minute)
		_, err = p.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)

		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(30 * time.Second)
		_, err = p.Authenticate(t.Context(), token)
		require.NoError(t, err)
		require.NoError(t, p.Close())
	})
}

func TestIssuerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer()
		i.hang = true
		p := connect(t, i)
		token := issue(with(nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := p.Authenticate(ctx, token)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		began := time.Now()
		_, err = p.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.LessOrEqual(t, time.Since(began), 10*time.Second)

		i.set(func(i *issuer) { i.hang, i.delay = false, 4*time.Second })
		time.Sleep(2 * time.Second)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				_, err := p.Authenticate(t.Context(), token)
				require.NoError(t, err)
			})
		}
		wg.Wait()
		require.Equal(t, 1, i.keyFetches())

		i.set(func(i *issuer) { i.hang = true })
		time.Sleep(31 * time.Second)
		wg.Go(func() {
			_, err := p.Authenticate(t.Context(), unknown(1))
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		})
		synctest.Wait()
		require.NoError(t, p.Close()) // ends the request
		wg.Wait()
		require.NoError(t, p.Close())
		_, err = p.Authenticate(t.Context(), token)
		require.NoError(t, err)
	})
}

// An answer that makes no sense is no key set, and no reason to refuse anybody.
func TestOddAnswers(t *testing.T) {
	const metadata = `{"issuer": "` + issuerURL + `", "jwks_uri": "%s"}`
	keys := func(body string) func(string) (int, string) {
		return func(path string) (int, string) {
			if path == "/keys" {
				return 200, body
			}
			return 200, fmt.Sprintf(metadata, issuerURL+"/keys")
		}
	}
	all := func(status int, body string) func(string) (int, string) {
		return func(string) (int, string) { return status, body }
	}
	secret := jose.JSONWebKey{Key: []byte("secret"), KeyID: "r1"}
	private := jose.JSONWebKey{Key: rsaKey(), KeyID: "r1"}
	encryption := jose.JSONWebKey{Key: rsaKey().Public(), KeyID: "r1", Use: "enc"}
	for name, override := range map[string]func(string) (int, string){
		"500":               all(500, "oops"),
		"redirect":          all(302, ""),
		"HTML":              all(200, "<html>"),
		"empty":             all(200, ""),
		"another issuer":    all(200, `{"issuer": "https://evil.example", "jwks_uri": "`+issuerURL+`/keys"}`),
		"no keys' URL":      all(200, `{"issuer": "`+issuerURL+`"}`),
		"keys without TLS":  all(200, fmt.Sprintf(metadata, "http://accounts.example.test/keys")),
		"keys from a file":  all(200, fmt.Sprintf(metadata, "file:///etc/passwd")),
		"no set":            keys(`[]`),
		"empty set":         keys(`{"keys": []}`),
		"keys no list":      keys(`{"keys": {"kty": "RSA"}}`),
		"strange keys":      keys(`{"keys": [{"kty": "X"}, 1, null, {"kty": "RSA", "n": "", "e": "AQAB"}]}`),
		"endless":           keys(`{"keys": [` + strings.Repeat(" ", 2<<20) + `]}`),
		"a secret":          keys(`{"keys": [` + string(must(secret.MarshalJSON())) + `]}`),
		"a private key":     keys(`{"keys": [` + string(must(private.MarshalJSON())) + `]}`),
		"an encryption key": keys(`{"keys": [` + string(must(encryption.MarshalJSON())) + `]}`),
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer()
			i.override = override
			p := connect(t, i)
			_, err := p.Authenticate(t.Context(), issue(with(nil)))
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		})
	}

	// A good key among strange ones is as good as alone.
	i := newIssuer()
	good := jose.JSONWebKey{Key: rsaKey().Public(), KeyID: "r1"}
	i.override = keys(`{"keys": [{"kty": "OKP", "crv": "Ed448", "x": "AA"}, ` + string(must(secret.MarshalJSON())) + `, ` + string(must(good.MarshalJSON())) + `]}`)
	p := connect(t, i)
	_, err := p.Authenticate(t.Context(), issue(with(nil)))
	require.NoError(t, err)
}

// The standard transport follows no redirect with its own idea of it either.
func TestOverARealConnection(t *testing.T) {
	mux := http.NewServeMux()
	url := serve(t, mux)
	keys := must((&jose.JSONWebKey{Key: rsaKey().Public(), KeyID: "r1"}).MarshalJSON())
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, url, url+"/keys")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"keys": [%s]}`, keys) })
	p, err := oidc.New(url, audience, &oidc.Options{IDClaim: "uid_number"})
	require.NoError(t, err)
	defer p.Close()
	u, err := p.Authenticate(t.Context(), issue(with(values{"iss": url})))
	require.NoError(t, err)
	require.Equal(t, "alice", u.Username)
}
