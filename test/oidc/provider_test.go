// Package oidc_test signs in with a real OpenID Connect provider, and shows what it hands out to webspaced.
package oidc_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/oauth2"
)

const callback = "http://localhost/auth/callback"

// society is an OpenID Connect provider: Zitadel's, with its login page, for the members of a society. Its clients are
// webspaced and dashboard.
type society struct {
	*storage.Storage
	issuer  string
	handler http.Handler

	mu     sync.Mutex
	keys   []signingKey // the last one signs
	down   bool
	delay  time.Duration
	claims map[string]map[string]any // by subject
}

type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

func (k signingKey) ID() string                                  { return k.id }
func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k signingKey) Key() any                                    { return k.key }

type publicKey struct{ signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.key.Public() }

func newSociety(t *testing.T, issuer string) *society {
	s := &society{issuer: issuer, claims: map[string]map[string]any{
		"7a1c": {"uid_number": 1000, "keys": []string{"ssh-ed25519 AAAA alice@laptop"}},
		"0f3e": {"uid_number": "1", "realm_access": map[string]any{"roles": []string{"users", "webspace-admins"}}},
	}}
	s.Storage = storage.NewStorageWithClients(members{
		"7a1c": {ID: "7a1c", Username: "alice", Password: "correct horse"},
		"0f3e": {ID: "0f3e", Username: "root", Password: "battery staple"},
	}, map[string]*storage.Client{
		"webspaced": storage.NativeClient("webspaced", callback), "dashboard": storage.NativeClient("dashboard", callback),
	})
	s.rotate(t)
	s.handler = exampleop.SetupServer(issuer, s, slog.New(slog.DiscardHandler), false)
	return s
}

// rotate makes a new key; what the old ones have signed stays valid until they are withdrawn.
func (s *society) rotate(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = append(s.keys, signingKey{fmt.Sprintf("key%d", len(s.keys)), key})
}

func (s *society) set(change func(*society)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *society) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[len(s.keys)-1], nil
}

func (s *society) KeySet(context.Context) (set []op.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range s.keys {
		set = append(set, publicKey{key})
	}
	return set, nil
}

// SetUserinfoFromRequest puts what webspaced wants to know into ID tokens.
func (s *society) SetUserinfoFromRequest(ctx context.Context, info *oidc.UserInfo, request op.IDTokenRequest, scopes []string) error {
	s.mu.Lock()
	for name, value := range s.claims[request.GetSubject()] {
		info.AppendClaims(name, value)
	}
	s.mu.Unlock()
	return s.Storage.SetUserinfoFromRequest(ctx, info, request, scopes)
}

// GetPrivateClaimsFromScopes does the same for access tokens.
func (s *society) GetPrivateClaimsFromScopes(_ context.Context, subject, _ string, _ []string) (map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims := map[string]any{"preferred_username": map[string]string{"7a1c": "alice", "0f3e": "root"}[subject]}
	for name, value := range s.claims[subject] {
		claims[name] = value
	}
	return claims, nil
}

func (s *society) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := s.Storage.GetClientByClientID(ctx, id)
	return client{c}, err
}

// client has ID tokens with all claims, and access tokens that are JWTs.
type client struct{ op.Client }

func (client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeJWT }

type members map[string]*storage.User

func (m members) GetUserByID(id string) *storage.User { return m[id] }
func (m members) ExampleClientID() string             { return "service" }
func (m members) GetUserByUsername(name string) *storage.User {
	for _, u := range m {
		if u.Username == name {
			return u
		}
	}
	return nil
}

// RoundTrip reaches the provider without a network.
func (s *society) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	down, delay := s.down, s.delay
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if down {
		return nil, errors.New("connection refused")
	}
	incoming := req.Clone(req.Context())
	incoming.RequestURI, incoming.Host, incoming.RemoteAddr = req.URL.RequestURI(), req.URL.Host, "198.18.0.1:1"
	if incoming.Body == nil {
		incoming.Body = http.NoBody
	}
	if req.URL.Scheme == "https" {
		incoming.TLS = &tls.ConnectionState{}
	}
	answer := httptest.NewRecorder()
	s.handler.ServeHTTP(answer, incoming)
	resp := answer.Result()
	resp.Request = req
	return resp, nil
}

// login does what a browser and a client do: the provider's login page, then a code for tokens.
func login(t *testing.T, s *society, transport http.RoundTripper, clientID, username, password string) *oauth2.Token {
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	config := oauth2.Config{
		ClientID: clientID, RedirectURL: callback, Scopes: []string{"openid", "profile"},
		Endpoint: oauth2.Endpoint{AuthURL: s.issuer + "/auth", TokenURL: s.issuer + "/oauth/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	verifier := oauth2.GenerateVerifier()
	page, err := browser.Get(config.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	require.NoError(t, err)
	page.Body.Close()
	require.Equal(t, http.StatusOK, page.StatusCode)
	answer, err := browser.PostForm(s.issuer+"/login/username", url.Values{
		"username": {username}, "password": {password}, "id": {page.Request.URL.Query().Get("authRequestID")},
	})
	require.NoError(t, err)
	answer.Body.Close()
	back, err := answer.Location()
	require.NoError(t, err, "%s can not sign in", username)
	token, err := config.Exchange(context.WithValue(t.Context(), oauth2.HTTPClient, browser), back.Query().Get("code"), oauth2.VerifierOption(verifier))
	require.NoError(t, err)
	return token
}

func idToken(t *oauth2.Token) string {
	token, _ := t.Extra("id_token").(string)
	return token
}
