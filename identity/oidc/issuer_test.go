package oidc_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity/oidc"
)

const (
	issuerURL = "https://accounts.example.test"
	audience  = "webspaced"
)

// Keys take long to make, so that all tests share them.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ecKey  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	edKey  = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) })
	rogue  = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// issuer is an OpenID Connect provider as seen by who verifies its tokens: a transport that answers with its metadata and
// keys. Tokens come from mint.
type issuer struct {
	mu       sync.Mutex
	keys     []jose.JSONWebKey
	fetches  int // of keys
	requests int
	err      error         // instead of answers
	hang     bool          // no answers
	delay    time.Duration // before each answer
	override func(path string) (status int, body string)
}

func newIssuer() *issuer {
	return &issuer{keys: []jose.JSONWebKey{
		{Key: rsaKey().Public(), KeyID: "r1", Algorithm: "RS256", Use: "sig"},
		{Key: ecKey().Public(), KeyID: "e1", Use: "sig"},
		{Key: edKey().Public(), KeyID: "d1"},
	}}
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) keyFetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

func (i *issuer) RoundTrip(req *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.requests++
	keys, err, hang, delay, override := i.keys, i.err, i.hang, i.delay, i.override
	if req.URL.Path == "/keys" {
		i.fetches++
	}
	i.mu.Unlock()
	if hang {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	select {
	case <-time.After(delay):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	status, body := http.StatusOK, ""
	switch req.URL.Path {
	case "/.well-known/openid-configuration":
		body = `{"issuer": "` + issuerURL + `", "jwks_uri": "` + issuerURL + `/keys", "id_token_signing_alg_values_supported": ["HS256", "none", "RS256"]}`
	case "/keys":
		body = string(must(json.Marshal(jose.JSONWebKeySet{Keys: keys})))
	default:
		status = http.StatusNotFound
	}
	if override != nil {
		status, body = override(req.URL.Path)
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader([]byte(body))), Request: req,
	}, nil
}

// connect returns a provider that reads all claims.
func connect(t testing.TB, i *issuer) *oidc.Provider {
	p, err := oidc.New(issuerURL, audience, &oidc.Options{
		IDClaim: "uid_number", AdminClaim: "groups", AdminValue: "admins", SSHKeyClaim: "keys",
		Transport: i, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

type values = map[string]any

// with returns alice's claims, changed. A nil value takes a claim away.
func with(changes values) values {
	c := values{
		"iss": issuerURL, "aud": audience, "sub": "f81d4fae", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		"uid_number": 1000, "preferred_username": "alice", "keys": []string{"ssh-ed25519 AAAA alice@laptop"},
	}
	maps.Copy(c, changes)
	for name, value := range changes {
		if value == nil {
			delete(c, name)
		}
	}
	return c
}

// mint makes a token with any header and payload: byte slices and strings as they are, all else as JSON.
func mint(header, payload any, sign func(input []byte) []byte) string {
	part := func(v any) string {
		switch v := v.(type) {
		case []byte:
			return base64.RawURLEncoding.EncodeToString(v)
		case string:
			return base64.RawURLEncoding.EncodeToString([]byte(v))
		}
		return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v)))
	}
	input := part(header) + "." + part(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

func rs256(key *rsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		return must(rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:]))
	}
}

func es256(input []byte) []byte {
	sum := sha256.Sum256(input)
	r, s, err := ecdsa.Sign(rand.Reader, ecKey(), sum[:])
	if err != nil {
		panic(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature
}

func eddsa(input []byte) []byte { return ed25519.Sign(edKey(), input) }

// issue makes a good token of the issuer.
func issue(claims values) string {
	return mint(values{"alg": "RS256", "kid": "r1", "typ": "JWT"}, claims, rs256(rsaKey()))
}

var errDown = errors.New("connection refused")
