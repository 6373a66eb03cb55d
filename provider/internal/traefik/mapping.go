// Package traefik says routes in Traefik's dynamic configuration. It is the one place that builds rules; the route
// providers that feed Traefik differ only in where they put the result.
package traefik

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/tls"
	"github.com/traefik/traefik/v2/pkg/types"

	"github.com/netsoc/webspaced/provider"
)

// Priority of every router. Traefik's default is the length of the rule: the longer of two rules would win, and with
// it whoever finds a longer way to say somebody else's name. It is above what catch-all rules get by default, so that
// these do not hide webspaces, and below the routers with which cert-manager answers challenges (HTTP-01), so that it can
// get certificates for hosts that are routed already.
const Priority = 50

// Mapping is how one deployment says its routes. Nothing in it comes from users.
type Mapping struct {
	// Deployment begins the name of each router and service, so that deployments can share a Traefik.
	Deployment string
	// HTTPEntryPoint takes plain HTTP. Empty: the entry points that Traefik uses by default.
	HTTPEntryPoint string
	// HTTPSEntryPoint takes TLS, which Traefik terminates for HTTP backends and passes through to TCP ones. Empty:
	// nothing is terminated, and what is passed through comes in at Traefik's default entry points.
	HTTPSEntryPoint string
	// CertResolver is the name of the certificate resolver for the hosts that have no certificate of their own. Empty:
	// Traefik's own certificates.
	CertResolver string
	// CertDomains are the names in the certificate that CertResolver is to obtain, such as a wildcard and what it is for.
	// Empty: one certificate for each host. One name alone is a wildcard.
	CertDomains []string
	// ChallengeURL is where the HTTP-01 challenges of all hosts go (RFC 8555 section 8.3), wherever the rest goes. Empty:
	// with the rest.
	ChallengeURL string
}

var configName = regexp.MustCompile(`^[A-Za-z0-9_-]*$`)

// Validate reports what is wrong with m, as InvalidArgument.
func (m Mapping) Validate() error {
	if !provider.IsLabel(m.Deployment) {
		return fmt.Errorf("deployment %q is not a DNS label: %w", m.Deployment, errdefs.ErrInvalidArgument)
	}
	for _, name := range []string{m.HTTPEntryPoint, m.HTTPSEntryPoint, m.CertResolver} {
		if !configName.MatchString(name) {
			return fmt.Errorf("%q names no entry point or certificate resolver: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	if m.CertResolver != "" && m.HTTPSEntryPoint == "" {
		return fmt.Errorf("certificate resolver without HTTPS entry point: %w", errdefs.ErrInvalidArgument)
	}
	if len(m.CertDomains) > 0 && m.CertResolver == "" {
		return fmt.Errorf("domains of a certificate without a certificate resolver: %w", errdefs.ErrInvalidArgument)
	}
	if len(m.CertDomains) == 1 && !strings.HasPrefix(m.CertDomains[0], "*.") {
		return fmt.Errorf("one certificate for all hosts has the name of one, %q: %w", m.CertDomains[0], errdefs.ErrInvalidArgument)
	}
	for _, domain := range m.CertDomains {
		if _, err := provider.ParseHost(strings.TrimPrefix(domain, "*.")); err != nil {
			return fmt.Errorf("domain of the certificate: %w", err)
		}
	}
	if m.ChallengeURL != "" {
		if err := provider.ValidateBackend(m.ChallengeURL); err != nil {
			return fmt.Errorf("where challenges go: %w", err)
		}
	}
	return nil
}

// Check reports why a valid route can not be said, as InvalidArgument.
func (m Mapping) Check(r provider.Route) error {
	for _, c := range r.Certificates {
		if c.Secret != "" {
			return fmt.Errorf("route %s: a secret of Kubernetes can only be referred to there: %w", r.Name, errdefs.ErrInvalidArgument)
		}
		if m.HTTPSEntryPoint == "" {
			return fmt.Errorf("route %s has certificates, but there is no entry point for HTTPS: %w", r.Name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Configuration returns what Traefik needs to serve r, which is valid and passes Check: one router for each host and entry
// point, and one service.
func (m Mapping) Configuration(r provider.Route) *dynamic.Configuration {
	// The parts are DNS labels, so that no two routes of any two deployments share a name.
	service := m.Deployment + "." + r.Name
	if address, ok := strings.CutPrefix(r.Backend, "tcp://"); ok {
		return &dynamic.Configuration{TCP: m.tcp(service, address, r.Hosts)}
	}
	c := &dynamic.Configuration{HTTP: m.http(service, r)}
	for _, certificate := range r.Certificates {
		if certificate.Chain != "" {
			if c.TLS == nil {
				c.TLS = &dynamic.TLSConfiguration{}
			}
			c.TLS.Certificates = append(c.TLS.Certificates, &tls.CertAndStores{Certificate: tls.Certificate{
				CertFile: tls.FileOrContent(certificate.Chain), KeyFile: tls.FileOrContent(certificate.Key),
			}})
		}
	}
	return c
}

func (m Mapping) http(service string, r provider.Route) *dynamic.HTTPConfiguration {
	routers := make(map[string]*dynamic.Router)
	services := map[string]*dynamic.Service{service: loadBalancer(r.Backend)}
	for _, host := range r.Hosts {
		plain := dynamic.Router{
			EntryPoints: entryPoints(m.HTTPEntryPoint),
			Service:     service,
			Rule:        rule(matchHost, host),
			Priority:    Priority,
		}
		secure := plain
		secure.EntryPoints = entryPoints(m.HTTPSEntryPoint)
		secure.TLS = m.tls(r.Certificate(host))
		routers[service+".http."+host.String()] = &plain
		if m.HTTPSEntryPoint != "" {
			routers[service+".https."+host.String()] = &secure
		}
		if m.ChallengeURL != "" {
			challenge := plain
			challenge.Service, challenge.Rule, challenge.Priority = service+"."+acme, challengeRule(host), Priority+1
			routers[service+"."+acme+"."+host.String()] = &challenge
			services[challenge.Service] = loadBalancer(m.ChallengeURL)
		}
	}
	return &dynamic.HTTPConfiguration{Routers: routers, Services: services}
}

// acme is in the names of what serves challenges.
const acme = "acme"

func loadBalancer(url string) *dynamic.Service {
	passHostHeader := true
	return &dynamic.Service{LoadBalancer: &dynamic.ServersLoadBalancer{
		Servers:        []dynamic.Server{{URL: url}},
		PassHostHeader: &passHostHeader,
	}}
}

// tls says which certificate a router is to use. One that has a certificate of its own names its host as the domain, which
// Traefik only looks at where there is a resolver, and which tells us when we read it.
func (m Mapping) tls(own provider.Certificate) *dynamic.RouterTLSConfig {
	if own.Host != (provider.Host{}) {
		return &dynamic.RouterTLSConfig{CertResolver: own.Resolver, Domains: []types.Domain{{Main: own.Host.String()}}}
	}
	c := &dynamic.RouterTLSConfig{CertResolver: m.CertResolver}
	if len(m.CertDomains) > 0 {
		c.Domains = []types.Domain{{Main: m.CertDomains[0], SANs: append([]string(nil), m.CertDomains[1:]...)}}
	}
	return c
}

func (m Mapping) tcp(service, address string, hosts []provider.Host) *dynamic.TCPConfiguration {
	routers := make(map[string]*dynamic.TCPRouter)
	for _, host := range hosts {
		routers[service+".tls."+host.String()] = &dynamic.TCPRouter{
			EntryPoints: entryPoints(m.HTTPSEntryPoint),
			Service:     service,
			Rule:        rule(matchHostSNI, host),
			Priority:    Priority,
			TLS:         &dynamic.RouterTCPTLSConfig{Passthrough: true},
		}
	}
	return &dynamic.TCPConfiguration{
		Routers: routers,
		Services: map[string]*dynamic.TCPService{service: {LoadBalancer: &dynamic.TCPServersLoadBalancer{
			Servers: []dynamic.TCPServer{{Address: address}},
		}}},
	}
}

// Route reads a configuration as the route of that name. It takes what it understands and ignores the rest: who wants
// to know whether c says just that route compares c with its Configuration.
func (m Mapping) Route(name string, c *dynamic.Configuration) provider.Route {
	service := m.Deployment + "." + name
	r := provider.Route{Name: name}
	if c.HTTP != nil {
		for _, router := range c.HTTP.Routers {
			if router == nil { // it is, where a file has a name and nothing after it
				continue
			}
			r.Hosts = appendHost(r.Hosts, matchHost, router.Rule)
			if router.TLS != nil && len(router.TLS.Domains) == 1 && len(router.TLS.Domains[0].SANs) == 0 {
				if own, err := provider.ParseHost(router.TLS.Domains[0].Main); err == nil && router.Rule == rule(matchHost, own) {
					r.Certificates = append(r.Certificates, provider.Certificate{Host: own, Resolver: router.TLS.CertResolver})
				}
			}
		}
		slices.SortFunc(r.Certificates, func(a, b provider.Certificate) int { return a.Host.Compare(b.Host) })
		if c.TLS != nil {
			addPEM(r.Certificates, c.TLS.Certificates)
		}
		if s := c.HTTP.Services[service]; s != nil && s.LoadBalancer != nil && len(s.LoadBalancer.Servers) == 1 {
			r.Backend = s.LoadBalancer.Servers[0].URL
		}
	}
	if c.TCP != nil {
		for _, router := range c.TCP.Routers {
			if router != nil {
				r.Hosts = appendHost(r.Hosts, matchHostSNI, router.Rule)
			}
		}
		if s := c.TCP.Services[service]; s != nil && s.LoadBalancer != nil && len(s.LoadBalancer.Servers) == 1 {
			r.Backend = "tcp://" + s.LoadBalancer.Servers[0].Address
		}
	}
	slices.SortFunc(r.Hosts, provider.Host.Compare)
	r.Hosts = slices.Compact(r.Hosts)
	return r
}

// addPEM fills in the certificates that are there themselves: those of the hosts without a resolver, in their order.
func addPEM(certificates []provider.Certificate, pem []*tls.CertAndStores) {
	for i := range certificates {
		if certificates[i].Resolver == "" && len(pem) > 0 && pem[0] != nil {
			certificates[i].Chain = string(pem[0].CertFile)
			certificates[i].Key = provider.PrivateKey(pem[0].KeyFile)
			pem = pem[1:]
		}
	}
}

func entryPoints(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}
