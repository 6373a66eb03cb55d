// Package iamd is the identity provider iamd, asked over its HTTP API.
//
// A token is valid if iamd says so: it alone holds the key that tokens are signed with, and it refuses those from before
// a log-out or a change of the user's rights. Whatever else goes wrong (no answer, an error of the server, an answer that
// makes no sense, our own token refused) is Unavailable: only iamd's clear word refuses a token that could be one.
package iamd

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

// maxBody bounds an answer, in bytes.
const maxBody = 64 << 10

// Options of [New]. The zero value of each is its default.
type Options struct {
	// Timeout bounds each look-up, with all requests that it takes [5s].
	Timeout time.Duration
	// InsecureSkipVerify leaves the certificate of iamd unverified: whoever is on the way can read tokens and be anybody.
	InsecureSkipVerify bool
}

// Provider asks iamd. It is safe for concurrent use and remembers nothing; see [identity.Cache].
type Provider struct {
	base    string
	token   string
	timeout time.Duration
	client  *http.Client
}

var (
	_ identity.Authenticator = (*Provider)(nil)
	_ identity.Directory     = (*Provider)(nil)
)

// New returns a provider for the iamd whose API has this URL, such as https://iam.example.org/v1. token is that of an
// admin of iamd, with which users are looked up; it is not checked here, so that iamd may come up later. InvalidArgument
// if the URL or the token can not be one.
func New(baseURL, token string, opts *Options) (*Provider, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	u, err := url.Parse(baseURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("the URL of iamd is not one of http:// or https:// with a host and a path: %w", errdefs.ErrInvalidArgument)
	}
	if !isToken(token) {
		return nil, fmt.Errorf("the token for iamd is missing or not a token: %w", errdefs.ErrInvalidArgument)
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: o.Timeout}).DialContext,
		TLSHandshakeTimeout:    o.Timeout,
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: o.InsecureSkipVerify},
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        32,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxBody,
	}
	return &Provider{
		base: strings.TrimSuffix(u.String(), "/"), token: token, timeout: o.Timeout,
		client: &http.Client{
			Transport: transport,
			// A token goes nowhere but to iamd.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Authenticate implements [identity.Authenticator].
func (p *Provider) Authenticate(ctx context.Context, token string) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	claims, ok := decodeClaims(token)
	if !ok {
		return identity.User{}, fmt.Errorf("the token is missing, too long or not a JWT: %w", errdefs.ErrUnauthenticated)
	}
	expires, readable := claims.expires()
	if !expires.IsZero() && !time.Now().Before(expires) {
		return identity.User{}, fmt.Errorf("the token has expired: %w", errdefs.ErrUnauthenticated)
	}
	callerCtx := ctx
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	fail := func(err error) (identity.User, error) { return identity.User{}, classify(callerCtx, err) }

	status, _, err := p.get(ctx, "users/self/token", token)
	if err != nil {
		return fail(err)
	}
	switch status {
	case http.StatusNoContent:
	case http.StatusUnauthorized:
		return identity.User{}, errRefused
	default:
		return fail(fmt.Errorf("iamd answers %d when asked about a token", status))
	}
	status, body, err := p.get(ctx, "users/self", token)
	if err != nil {
		return fail(err)
	}
	switch status {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return identity.User{}, errRefused // revoked in between
	default:
		return fail(fmt.Errorf("iamd answers %d when asked whose a token is", status))
	}
	user, err := decodeUser(body)
	if err != nil {
		return fail(err)
	}
	if !readable {
		return fail(errors.New("iamd accepts a token whose end is not a time"))
	}
	if !claims.allow(user.ID) {
		return fail(fmt.Errorf("iamd answers with user %d to a token of another", user.ID))
	}
	user.Expires = expires
	return user, nil
}

var errRefused = fmt.Errorf("iamd refuses the token: %w", errdefs.ErrUnauthenticated)

// ByID implements [identity.Directory].
func (p *Provider) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	if id <= 0 {
		return identity.User{}, errNobody
	}
	return p.find(ctx, "id:"+id.String(), func(u identity.User) bool { return u.ID == id })
}

// ByUsername implements [identity.Directory]. Case is iamd's matter.
func (p *Provider) ByUsername(ctx context.Context, username string) (identity.User, error) {
	// No account is called what means something else in a path.
	switch {
	case username == "", username == ".", username == "..", len(username) > 255,
		strings.EqualFold(username, "self"), strings.HasPrefix(strings.ToLower(username), "id:"):
		return identity.User{}, errNobody
	}
	return p.find(ctx, username, func(u identity.User) bool { return strings.EqualFold(u.Username, username) })
}

var errNobody = fmt.Errorf("no such user: %w", errdefs.ErrNotFound)

func (p *Provider) find(ctx context.Context, who string, matches func(identity.User) bool) (identity.User, error) {
	callerCtx := ctx
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	fail := func(err error) (identity.User, error) { return identity.User{}, classify(callerCtx, err) }

	status, body, err := p.get(ctx, "users/"+url.PathEscape(who), p.token)
	switch {
	case err != nil:
		return fail(err)
	case status == http.StatusNotFound && isProblem(body):
		return identity.User{}, errNobody
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fail(fmt.Errorf("iamd answers %d to our own token: is it an admin's, and still valid?", status))
	case status != http.StatusOK:
		return fail(fmt.Errorf("iamd answers %d when asked for a user", status))
	}
	user, err := decodeUser(body)
	if err != nil {
		return fail(err)
	}
	if !matches(user) {
		return fail(fmt.Errorf("iamd answers with user %d when asked for another", user.ID))
	}
	return user, nil
}

// classify passes the end of the caller's context through, and makes all else Unavailable. The cause is kept as text only:
// the end of our own deadline is not that of the caller's.
func classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable)
}

func (p *Provider) get(ctx context.Context, path, token string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	resp, err := p.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL: the username in it is outside input
		}
		return 0, nil, fmt.Errorf("ask iamd: %w", err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read iamd's answer: %w", err)
	}
	return resp.StatusCode, body, nil
}

// decodeUser reads an account. Fields that may be null are as good as missing then.
func decodeUser(body []byte) (identity.User, error) {
	var account struct {
		ID       identity.UserID `json:"id"`
		Username string          `json:"username"`
		SSHKey   *string         `json:"ssh_key"`
		IsAdmin  *bool           `json:"is_admin"`
	}
	if err := json.Unmarshal(body, &account); err != nil {
		return identity.User{}, errors.New("iamd's answer is not a user in JSON")
	}
	if account.ID <= 0 || account.Username == "" {
		return identity.User{}, errors.New("iamd's answer is a user without an ID or a username")
	}
	user := identity.User{ID: account.ID, Username: account.Username}
	user.Admin = account.IsAdmin != nil && *account.IsAdmin
	if account.SSHKey != nil {
		user.SSHKeys = identity.KeyLines(*account.SSHKey)
	}
	return user, nil
}

// isProblem reports whether a body is iamd's word on an error, and not that of something in between.
func isProblem(body []byte) bool {
	var problem struct {
		Message *string `json:"message"`
	}
	return json.Unmarshal(body, &problem) == nil && problem.Message != nil
}

// claims are what a token says. Only iamd can verify a token, so this means something for one that iamd has accepted; of
// any other, it can be used to refuse it.
type claims map[string]json.RawMessage

// decodeClaims is not ok for what does not have the form of a JWT: three parts in base64url, the second a JSON object.
func decodeClaims(token string) (c claims, ok bool) {
	parts := strings.Split(token, ".")
	if !isToken(token) || len(parts) != 3 {
		return nil, false
	}
	var payload []byte
	for i, part := range parts {
		decoded, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil || len(decoded) == 0 {
			return nil, false
		}
		if i == 1 {
			payload = decoded
		}
	}
	return c, json.Unmarshal(payload, &c) == nil && c != nil
}

// expires returns when the token ends, to the second; zero if it does not say. Not ok if what it says is no time.
func (c claims) expires() (t time.Time, ok bool) {
	value, ok := c["exp"]
	if !ok || string(value) == "null" {
		return t, true
	}
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || seconds < -1<<40 || seconds > 1<<40 {
		return t, false
	}
	return time.Unix(int64(seconds), 0), true
}

// allow reports whether the token may be this user's: its subject, a text or a number, is theirs, or it has none.
func (c claims) allow(id identity.UserID) bool {
	value, ok := c["sub"]
	if !ok || string(value) == "null" {
		return true
	}
	subject := string(value)
	if value[0] == '"' && json.Unmarshal(value, &subject) != nil {
		return false
	}
	return subject == id.String()
}

// isToken reports whether s has the form of a bearer token (RFC 6750, section 2.1), which no header is broken by.
func isToken(s string) bool {
	if s == "" || len(s) > identity.MaxToken {
		return false
	}
	for _, c := range []byte(strings.TrimRight(s, "=")) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~+/", c) >= 0:
		default:
			return false
		}
	}
	return true
}
