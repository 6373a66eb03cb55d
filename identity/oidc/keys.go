package oidc

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	keysFresh    = 30 * time.Minute // older keys are read anew, and used meanwhile
	keysUsable   = time.Hour        // older keys are not used: the issuer may have withdrawn one
	fetchPause   = 30 * time.Second // between two fetches, whatever tokens people think of
	fetchTimeout = 10 * time.Second
	maxAnswer    = 1 << 20 // bytes of one answer of the provider
)

// algorithms are those with a public key. With any other, who can verify tokens could make them.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

func algorithmNames() []string {
	names := make([]string, len(algorithms))
	for i, a := range algorithms {
		names[i] = string(a)
	}
	return names
}

// keys are the issuer's public keys. They are read again when they get old and when a token names one that is not known,
// by one fetch at a time that belongs to nobody in particular.
type keys struct {
	issuer string
	client *http.Client
	log    *slog.Logger
	ctx    context.Context // of fetches
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	url      string // of the key set; empty if it has to be discovered
	set      []jose.JSONWebKey
	read     time.Time     // when set was asked for; zero if it never was
	flight   chan struct{} // closed at the end of the fetch under way; nil if there is none
	next     time.Time     // no fetch begins before
	failures int           // in a row
	err      error         // of the last fetch
}

func newKeys(issuer string, transport http.RoundTripper, log *slog.Logger) *keys {
	k := &keys{issuer: issuer, client: &http.Client{Transport: bounded{transport}}, log: log}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

func (k *keys) close() error {
	k.mu.Lock() // after which no fetch begins
	k.cancel()
	k.mu.Unlock()
	k.wg.Wait()
	k.client.CloseIdleConnections()
	return nil
}

// verify returns the payload of a token that one of the keys has signed.
func (k *keys) verify(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return nil, refuse("the token is not a signed JWT")
	}
	header := jws.Signatures[0].Protected
	if typ, ok := header.ExtraHeaders[jose.HeaderType]; ok && !isTokenType(typ) {
		return nil, refuse("the token is of a type that is not for access")
	}
	set, read := k.usable()
	payload, known := check(jws, header, set)
	if payload == nil && !known {
		if err := k.refresh(ctx, read); err != nil {
			return nil, err
		}
		set, _ = k.usable()
		payload, _ = check(jws, header, set)
	}
	if payload == nil {
		return nil, refuse("the token is not signed by the issuer")
	}
	return payload, nil
}

// isTokenType keeps out what the same issuer signs for other purposes, such as the tokens that tell of a log-out.
func isTokenType(typ any) bool {
	name, _ := typ.(string)
	switch strings.TrimPrefix(strings.ToLower(name), "application/") {
	case "jwt", "at+jwt", "id+jwt":
		return true
	}
	return false
}

// check returns the payload if one of the keys has signed the token, and else whether it should have: its key is known.
func check(jws *jose.JSONWebSignature, header jose.Header, set []jose.JSONWebKey) (payload []byte, known bool) {
	for i := range set {
		key := &set[i]
		if header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		known = known || header.KeyID != ""
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, true
		}
	}
	return nil, known
}

// usable returns the keys and when they were read. None if they are too old; when they are no longer fresh, it has them
// read anew.
func (k *keys) usable() ([]jose.JSONWebKey, time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	age := time.Since(k.read)
	if age > keysFresh {
		k.start()
	}
	if age > keysUsable {
		return nil, k.read
	}
	return k.set, k.read
}

// readSoon begins to read the keys.
func (k *keys) readSoon() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.start()
}

// refresh waits for keys that were read later than the given time, unless those are as new as they may be. Unavailable if
// the issuer can not be asked.
func (k *keys) refresh(ctx context.Context, than time.Time) error {
	k.mu.Lock()
	if !k.read.After(than) {
		k.start()
	}
	flight := k.flight
	k.mu.Unlock()
	if flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil && !k.read.After(than) {
		return fmt.Errorf("read the keys of %s: %v: %w", k.issuer, k.err, errdefs.ErrUnavailable)
	}
	return nil
}

// start begins a fetch, if none is under way and it is time. The caller holds mu.
func (k *keys) start() {
	now := time.Now()
	if k.flight != nil || now.Before(k.next) {
		return
	}
	if k.ctx.Err() != nil {
		k.err = errors.New("closed")
		return
	}
	flight, url := make(chan struct{}), k.url
	k.flight, k.next = flight, now.Add(fetchPause)
	k.wg.Go(func() {
		ctx, cancel := context.WithTimeout(k.ctx, fetchTimeout)
		defer cancel()
		set, url, err := k.fetch(ctx, url)
		k.mu.Lock()
		defer k.mu.Unlock()
		defer close(flight)
		k.flight, k.url, k.err = nil, url, err // after an error without a URL: the keys may have moved
		if err == nil {
			k.set, k.read, k.failures = set, now, 0
			return
		}
		if time.Since(k.read) > keysUsable {
			// Nobody can come in: try soon.
			k.next = time.Now().Add(min(time.Second<<min(k.failures, 5), fetchPause))
		}
		k.failures++
		if k.ctx.Err() != nil {
			return
		}
		k.log.Warn("the identity provider's keys can not be read", "issuer", k.issuer, "error", err)
	})
}

// fetch reads the key set, and before that where it is, if that is not known.
func (k *keys) fetch(ctx context.Context, url string) ([]jose.JSONWebKey, string, error) {
	if url == "" {
		provider, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
		if err != nil {
			return nil, "", err
		}
		var metadata struct {
			URL string `json:"jwks_uri"`
		}
		if err := provider.Claims(&metadata); err != nil {
			return nil, "", err
		}
		url = metadata.URL
		if !strings.HasPrefix(url, "https://") && !strings.HasPrefix(k.issuer, "http://") {
			return nil, "", errors.New("its keys are not at a URL of https://")
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&document); err != nil {
		return nil, "", fmt.Errorf("decode the key set: %w", err)
	}
	var set []jose.JSONWebKey
	for _, raw := range document.Keys {
		var key jose.JSONWebKey
		// A kind of key that is not known may stand beside ours.
		if key.UnmarshalJSON(raw) == nil && verifies(key) {
			set = append(set, key)
		}
	}
	if len(set) == 0 {
		return nil, "", errors.New("the key set has no public key for signatures")
	}
	return set, url, nil
}

// verifies reports whether a key is a public one for signatures, and none that can be guessed.
func verifies(key jose.JSONWebKey) bool {
	if !key.Valid() || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
		return false
	}
	r, ok := key.Key.(*rsa.PublicKey)
	return !ok || r.N.BitLen() >= 2048
}

// bounded lets through what is an answer: no redirects, no errors, no more than a megabyte.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("the answer is %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

func (b bounded) CloseIdleConnections() {
	if t, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}
