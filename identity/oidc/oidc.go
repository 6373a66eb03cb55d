// Package oidc takes the tokens of an OpenID Connect provider: ID tokens, and access tokens that are JWTs.
//
// A token is verified here, with the provider's public keys; the provider is asked for nothing else. So it can not be asked
// about other users either: the directory knows those whose tokens it has seen, and those that it was told of.
package oidc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/netsoc/webspaced/identity"
)

// maxSkew is how far ahead of ours the provider's clock may be. A token that begins later than that is refused.
const maxSkew = time.Minute

// Options of [New]. The zero value of each is its default.
//
// A claim is found by its name; if a token has none of that name and the name has dots in it, they lead into objects, as in
// realm_access.roles.
type Options struct {
	// UsernameClaim has the username [preferred_username].
	UsernameClaim string
	// IDClaim has the numeric ID, as a number or in decimal digits [sub].
	IDClaim string
	// AdminClaim makes an admin if it is true, or if it is, or lists, AdminValue. Without AdminClaim there are no admins;
	// without AdminValue only true counts.
	AdminClaim, AdminValue string
	// SSHKeyClaim has the user's public keys: a text in authorized_keys format, or a list of such [none].
	SSHKeyClaim string
	// Transport makes the requests to the provider [a transport of its own, with time limits].
	Transport http.RoundTripper
	// Logger is told when the provider's keys can not be read [slog.Default].
	Logger *slog.Logger
}

// Provider verifies tokens. It is safe for concurrent use.
type Provider struct {
	users
	issuer string
	claims claims
	config *oidc.Config
	keys   *keys
}

var (
	_ identity.Authenticator = (*Provider)(nil)
	_ identity.Directory     = (*Provider)(nil)
	_ identity.Learner       = (*Provider)(nil)
)

// New returns a provider of users who have a token of this issuer (exactly as it calls itself, such as
// https://accounts.example.org) for this audience. It begins to read the issuer's keys, and does not wait for them: the
// issuer may come up later. InvalidArgument if the issuer is no URL of http or https, or the audience is empty. Close it
// in the end.
func New(issuer, audience string, opts *Options) (*Provider, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: fetchTimeout}).DialContext,
			TLSHandshakeTimeout:    fetchTimeout,
			ForceAttemptHTTP2:      true,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the issuer is not a URL of http:// or https://: %w", errdefs.ErrInvalidArgument)
	}
	if audience == "" {
		return nil, fmt.Errorf("the audience is empty: %w", errdefs.ErrInvalidArgument)
	}
	p := &Provider{
		issuer: issuer,
		claims: claims{
			username: or(o.UsernameClaim, "preferred_username"), id: or(o.IDClaim, "sub"),
			admin: o.AdminClaim, adminValue: o.AdminValue, sshKey: o.SSHKeyClaim,
		},
		config: &oidc.Config{ClientID: audience, SupportedSigningAlgs: algorithmNames()},
		keys:   newKeys(issuer, o.Transport, o.Logger),
	}
	p.keys.readSoon()
	return p, nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Close ends requests to the provider that are under way, and waits for them. Afterwards it verifies with the keys it has.
func (p *Provider) Close() error { return p.keys.close() }

// Authenticate implements [identity.Authenticator].
func (p *Provider) Authenticate(ctx context.Context, token string) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	if !isJWT(token) {
		return identity.User{}, refuse("the token is missing, too long or not a JWT")
	}
	attempt := &attempt{keys: p.keys}
	verified, err := oidc.NewVerifier(p.issuer, attempt, p.config).Verify(ctx, token)
	switch {
	case attempt.err != nil:
		return identity.User{}, attempt.err
	case err != nil && !attempt.made:
		return identity.User{}, refuse("the token is not a JWT that is signed with a public key")
	case err != nil:
		// The issuer has signed it, so nothing in the reason is somebody's invention.
		if _, ok := errors.AsType[*oidc.TokenExpiredError](err); ok {
			return identity.User{}, refuse("the token has expired")
		}
		return identity.User{}, refuse("the token is not valid: %v", err)
	}
	var object object
	if err := verified.Claims(&object); err != nil {
		return identity.User{}, refuse("the token's claims are not an object")
	}
	user, issued, err := p.claims.user(object, time.Now())
	if err != nil {
		return identity.User{}, err
	}
	p.see(user, issued)
	return user, nil
}

// attempt is one verification's view of the keys. The verifier makes text of the error; here it keeps its class.
type attempt struct {
	keys *keys
	made bool
	err  error
}

// VerifySignature implements [oidc.KeySet].
func (a *attempt) VerifySignature(ctx context.Context, token string) (payload []byte, err error) {
	a.made = true
	payload, a.err = a.keys.verify(ctx, token)
	return payload, a.err
}

// isJWT reports whether s is three parts in the alphabet of base64url, separated by dots.
func isJWT(s string) bool {
	if len(s) > identity.MaxToken || strings.Count(s, ".") != 2 || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || strings.Contains(s, "..") {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrUnauthenticated)...)
}
