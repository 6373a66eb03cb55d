package traefiktest

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/tls"

	"github.com/netsoc/webspaced/provider"
)

// Backend returns where a configuration sends a host, as the backend of a route; empty if nowhere. Like Traefik it ignores
// routers without a service, and services without a server.
func Backend(c *dynamic.Configuration, host string) (backend string) {
	if c.HTTP != nil {
		for _, r := range c.HTTP.Routers {
			if s := c.HTTP.Services[r.Service]; says(r.Rule, "Host", host) && s != nil && len(s.LoadBalancer.Servers) > 0 {
				backend = s.LoadBalancer.Servers[0].URL
			}
		}
	}
	if c.TCP != nil {
		for _, r := range c.TCP.Routers {
			if s := c.TCP.Services[r.Service]; says(r.Rule, "HostSNI", host) && s != nil && len(s.LoadBalancer.Servers) > 0 {
				backend = "tcp://" + s.LoadBalancer.Servers[0].Address
			}
		}
	}
	return backend
}

// Status asks a Traefik for a host, and returns the status of the answer; 0 if there is none.
func Status(t testing.TB, address, host string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = host
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

// HasCertificate reports whether a configuration has this certificate, or this resolver for its host.
func HasCertificate(c *dynamic.Configuration, want provider.Certificate) bool {
	if want.Resolver != "" {
		if c.HTTP == nil {
			return false
		}
		for _, r := range c.HTTP.Routers {
			if says(r.Rule, "Host", want.Host.String()) && r.TLS != nil && r.TLS.CertResolver == want.Resolver {
				return len(r.TLS.Domains) == 1 && r.TLS.Domains[0].Main == want.Host.String() && len(r.TLS.Domains[0].SANs) == 0
			}
		}
		return false
	}
	return c.TLS != nil && slices.ContainsFunc(c.TLS.Certificates, func(have *tls.CertAndStores) bool {
		return string(have.CertFile) == want.Chain && string(have.KeyFile) == string(want.Key) && len(have.Stores) == 0
	})
}

// says reports whether a rule is about one host and nothing else.
func says(rule, matcher, host string) bool { return rule == matcher+"(`"+host+"`)" }
