package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/iamd"
	"github.com/netsoc/webspaced/identity/oidc"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/internal/config"
	"github.com/netsoc/webspaced/metrics"
)

// newUsers returns what says who somebody is, and who there is.
func newUsers(c *config.Config, m *metrics.Metrics, log *slog.Logger) (identity.Authenticator, identity.Directory, func() error, error) {
	nothing := func() error { return nil }
	switch c.Identity.Provider {
	case "static":
		users, err := static.New(c.Identity.Static.Accounts())
		if err != nil {
			return nil, nil, nil, fmt.Errorf("identity.static.users: %w", err)
		}
		return m.Authenticator(users), m.Directory(users), nothing, nil
	case "iamd":
		warnOfPlainHTTP("iam.url", c.IAM.URL, log)
		users, err := iamd.New(c.IAM.URL.String(), c.IAM.Token.Reveal(), &iamd.Options{InsecureSkipVerify: c.IAM.AllowInsecure})
		if err != nil {
			return nil, nil, nil, fmt.Errorf("iam: %w", err)
		}
		if c.Identity.CacheTTL == 0 {
			return m.Authenticator(users), m.Directory(users), nothing, nil
		}
		cache := identity.NewCache(m.Authenticator(users), m.Directory(users), &identity.CacheOptions{TTL: c.Identity.CacheTTL})
		return cache, cache, nothing, nil
	case "oidc":
		// Tokens are verified here, and nobody is asked: there is nothing to cache.
		o := c.Identity.OIDC
		warnOfPlainHTTP("identity.oidc.issuer", o.Issuer, log)
		users, err := oidc.New(o.Issuer.String(), o.Audience, &oidc.Options{
			UsernameClaim: o.UsernameClaim, IDClaim: o.IDClaim,
			AdminClaim: o.AdminClaim, AdminValue: o.AdminValue, SSHKeyClaim: o.SSHKeyClaim,
			Logger: log,
		})
		if err != nil {
			return nil, nil, nil, fmt.Errorf("identity.oidc: %w", err)
		}
		return m.Authenticator(users), m.Directory(users), users.Close, nil
	}
	return nil, nil, nil, fmt.Errorf("identity.provider: there is no provider %q", c.Identity.Provider)
}

// recheck is how often those who have something open are asked about: a log-out ends that as soon as it ends all else, or
// sooner.
func recheck(c *config.Config) time.Duration {
	return min(max(c.Identity.CacheTTL, time.Second), 30*time.Second)
}

// warnOfPlainHTTP tells the operator that whoever is on the way to an identity provider can be anybody.
func warnOfPlainHTTP(key string, u config.URL, log *slog.Logger) {
	host := u.Hostname()
	address, err := netip.ParseAddr(host)
	if u.Scheme == "http" && host != "localhost" && (err != nil || !address.IsLoopback()) {
		log.Warn("the identity provider is asked over plain HTTP: whoever can read or change that traffic can be anybody", "key", key)
	}
}
