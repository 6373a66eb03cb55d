package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/mholt/acmez/v3/acme"

	"github.com/netsoc/webspaced/provider"
)

// client is the authority behind a directory URL, with our account there.
type client struct {
	acme    *acme.Client
	opts    Options
	file    string // of the account
	answers *answers

	mu      sync.Mutex // one registration at a time
	account acme.Account
}

func newClient(o Options, s *store, answers *answers) (*client, error) {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("acme: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if u, err := url.Parse(o.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, invalid("directory %q is not an https:// URL", o.Directory)
	}
	if o.Email != "" {
		if address, err := mail.ParseAddress(o.Email); err != nil || address.Address != o.Email {
			return nil, invalid("email %q is not an address", o.Email)
		}
	}
	for _, c := range o.Challenges {
		if c != HTTP01 && c != TLSALPN01 {
			return nil, invalid("challenge %q is neither %s nor %s", c, HTTP01, TLSALPN01)
		}
	}
	if o.MaxOrders < 0 || o.HostOrders < 0 || o.OwnerOrders < 0 || o.AccountOrders < 0 {
		return nil, invalid("limits can not be negative")
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 4, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, invalid("CA file: %v", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
			return nil, invalid("CA file %s has no certificate in PEM in it", o.CAFile)
		}
	}
	return &client{
		acme: &acme.Client{
			Directory:   o.Directory,
			HTTPClient:  &http.Client{Transport: &careful{transport}, Timeout: time.Minute},
			UserAgent:   "webspaced",
			PollTimeout: attemptTimeout,
		},
		opts: o, file: filepath.Join(s.dir, "account.json"), answers: answers,
	}, nil
}

// savedAccount is what account.json has in it.
type savedAccount struct {
	Directory string `json:"directory"`
	Email     string `json:"email"`
	Location  string `json:"location"`
	Key       string `json:"key"` // PEM
}

// register returns our account at the authority: the one that is kept, or a new one.
func (c *client) register(ctx context.Context) (acme.Account, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.account.Location != "" {
		return c.account, nil
	}
	if account, err := c.kept(); err == nil {
		c.account = account
		return account, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		c.opts.Logger.Warn("file of the ACME account is of no use; registering a new one", "file", c.file, "error", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	account := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if c.opts.Email != "" {
		account.Contact = []string{"mailto:" + c.opts.Email}
	}
	if account, err = c.acme.NewAccount(ctx, account); err != nil {
		return acme.Account{}, fmt.Errorf("register an account: %w", err)
	}
	secret, err := encodeKey(key)
	if err != nil {
		return acme.Account{}, err
	}
	content, err := json.MarshalIndent(savedAccount{c.opts.Directory, c.opts.Email, account.Location, secret}, "", "\t")
	if err != nil {
		return acme.Account{}, err
	}
	if err := replaceFile(c.file, content); err != nil {
		return acme.Account{}, err
	}
	c.account = account
	return account, nil
}

func (c *client) kept() (acme.Account, error) {
	content, err := readFile(c.file)
	if err != nil {
		return acme.Account{}, err
	}
	var saved savedAccount
	if err := json.Unmarshal(content, &saved); err != nil {
		return acme.Account{}, err
	}
	if saved.Directory != c.opts.Directory || saved.Email != c.opts.Email {
		return acme.Account{}, errors.New("it is of another directory or email address")
	}
	block, _ := pem.Decode([]byte(saved.Key))
	if block == nil || saved.Location == "" {
		return acme.Account{}, errors.New("it has no key or no location")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return acme.Account{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return acme.Account{}, fmt.Errorf("its key is a %T", parsed)
	}
	return acme.Account{Status: acme.StatusValid, Location: saved.Location, PrivateKey: key}, nil
}

// forget has a new account registered: the authority does not know ours any more.
func (c *client) forget() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.account = acme.Account{}
	return os.Remove(c.file)
}

func (c *client) obtain(
	ctx context.Context, host provider.Host, way int, replaces *x509.Certificate,
) (chain, key string, ordered bool, err error) {
	account, err := c.register(ctx)
	if err != nil {
		return "", "", false, err
	}
	request := acme.Order{Identifiers: []acme.Identifier{{Type: "dns", Value: host.String()}}}
	if directory, err := c.acme.GetDirectory(ctx); err == nil && replaces != nil && directory.RenewalInfo != "" {
		request.Replaces, _ = acme.ARIUniqueIdentifier(replaces)
	}
	order, err := c.acme.NewOrder(ctx, account, request)
	if request.Replaces != "" && refused(err) {
		// What it replaces may be of another account, or replaced already: that is no reason to go without.
		request.Replaces = ""
		order, err = c.acme.NewOrder(ctx, account, request)
	}
	if problem, ok := errors.AsType[acme.Problem](err); ok && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		err = errors.Join(err, c.forget())
	}
	if err != nil {
		return "", "", false, fmt.Errorf("order: %w", err)
	}
	for _, location := range order.Authorizations {
		if err := c.authorize(ctx, account, host, location, c.opts.Challenges[way%len(c.opts.Challenges)]); err != nil {
			return "", "", true, err
		}
	}
	chain, key, err = c.finalize(ctx, account, order, host)
	return chain, key, true, err
}

// refused reports whether the authority has read a request and not liked what it says.
func refused(err error) bool {
	problem, ok := errors.AsType[acme.Problem](err)
	return ok && (problem.Status == http.StatusBadRequest || problem.Status == http.StatusConflict || problem.Status == http.StatusNotFound)
}

func (c *client) authorize(ctx context.Context, account acme.Account, host provider.Host, location string, way Challenge) error {
	authorization, err := c.acme.GetAuthorization(ctx, account, location)
	if err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	if authorization.Status == acme.StatusValid {
		return nil
	}
	n := slices.IndexFunc(authorization.Challenges, func(o acme.Challenge) bool { return o.Type == string(way) })
	if n < 0 {
		return fmt.Errorf("the certificate authority offers no %s challenge", way)
	}
	end, err := c.answers.give(host, authorization.Challenges[n])
	if err != nil {
		return err
	}
	defer end()
	if _, err = c.acme.InitiateChallenge(ctx, account, authorization.Challenges[n]); err == nil {
		_, err = c.acme.PollAuthorization(ctx, account, authorization)
	}
	if err == nil {
		return nil
	}
	if _, decided := errors.AsType[acme.Problem](err); !decided {
		// One that is left pending counts against the account's limit of them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = c.acme.DeactivateAuthorization(ctx, account, location)
	}
	return fmt.Errorf("%s: %w", way, err)
}

func (c *client) finalize(ctx context.Context, account acme.Account, order acme.Order, host provider.Host) (chain, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{host.String()}}, private)
	if err != nil {
		return "", "", err
	}
	if order, err = c.acme.FinalizeOrder(ctx, account, order, csr); err != nil {
		return "", "", fmt.Errorf("finalize: %w", err)
	}
	chains, err := c.acme.GetCertificateChain(ctx, account, order.Certificate)
	if err != nil {
		return "", "", fmt.Errorf("download: %w", err)
	}
	if len(chains) == 0 {
		return "", "", errors.New("the certificate authority has sent no certificate")
	}
	if key, err = encodeKey(private); err != nil {
		return "", "", err
	}
	r := record{host: host, Host: host.String(), Chain: string(chains[0].ChainPEM), Key: key}
	pair, now := r.pair(), time.Now()
	switch {
	case pair == nil:
		return "", "", errors.New("the certificate authority has sent a certificate of something else")
	case now.Before(pair.Leaf.NotBefore), now.After(pair.Leaf.NotAfter):
		return "", "", fmt.Errorf("the new certificate is valid from %s to %s, which is not now: is the clock of this server right?",
			pair.Leaf.NotBefore.UTC().Format(time.RFC3339), pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return r.Chain, r.Key, nil
}

func (c *client) advice(ctx context.Context, leaf *x509.Certificate) (time.Time, error) {
	directory, err := c.acme.GetDirectory(ctx)
	if err != nil || directory.RenewalInfo == "" {
		return time.Time{}, err
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		return time.Time{}, err
	}
	// acmez would do this, but takes windows of less than two seconds, which mean "now", for none.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, directory.RenewalInfo+"/"+id, http.NoBody)
	if err != nil {
		return time.Time{}, err
	}
	response, err := c.acme.HTTPClient.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("renewal information: %s", response.Status)
	}
	var info acme.RenewalInfo
	if err := json.NewDecoder(response.Body).Decode(&info); err != nil {
		return time.Time{}, fmt.Errorf("renewal information: %w", err)
	}
	return moment(info.SuggestedWindow.Start, info.SuggestedWindow.End), nil
}

// moment is a time between two, so that not all certificates of one day are renewed at once (RFC 9773 section 4.2); zero if
// they are no window.
func moment(begin, end time.Time) time.Time {
	if begin.IsZero() || !begin.Before(end) {
		return time.Time{}
	}
	return begin.Add(mathrand.N(end.Sub(begin)))
}

func encodeKey(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// careful bounds answers, and notes when one of them says to come back.
type careful struct{ http.RoundTripper }

func (c *careful) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, 1<<20), response.Body}
	if hint, ok := r.Context().Value(hintKey{}).(*retryHint); ok && response.StatusCode >= 400 {
		hint.note(response.Header.Get("Retry-After"), time.Now())
	}
	return response, nil
}

type hintKey struct{}

// retryHint is when the authority wants to be asked again.
type retryHint struct {
	mu sync.Mutex
	at time.Time
}

func (h *retryHint) note(header string, now time.Time) {
	var at time.Time
	if seconds, err := strconv.Atoi(header); err == nil {
		at = now.Add(time.Duration(min(max(seconds, 0), int(day/time.Second))) * time.Second)
	} else if at, err = http.ParseTime(header); err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = later(h.at, at)
}

func (h *retryHint) get() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}
