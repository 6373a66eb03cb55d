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

	"github.com/netsoc/webspaced/provider"
)

// Priority of every router. Traefik's default is the length of the rule: the longer of two rules would win, and with
// it whoever finds a longer way to say somebody else's name. It is above what catch-all rules get by default, so that
// these do not hide webspaces.
const Priority = 100

// Mapping is how one deployment says its routes. Nothing in it comes from users.
type Mapping struct {
	// Deployment begins the name of each router and service, so that deployments can share a Traefik.
	Deployment string
	// HTTPEntryPoint takes plain HTTP. Empty: the entry points that Traefik uses by default.
	HTTPEntryPoint string
	// HTTPSEntryPoint takes TLS, which Traefik terminates for HTTP backends and passes through to TCP ones. Empty:
	// nothing is terminated, and what is passed through comes in at Traefik's default entry points.
	HTTPSEntryPoint string
	// CertResolver is the name of the certificate resolver for terminated TLS. Empty: Traefik's own certificates.
	CertResolver string
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
	return nil
}

// Configuration returns what Traefik needs to serve r, which is valid: one router for each host and entry point, and
// one service.
func (m Mapping) Configuration(r provider.Route) *dynamic.Configuration {
	// The parts are DNS labels, so that no two routes of any two deployments share a name.
	service := m.Deployment + "." + r.Name
	if address, ok := strings.CutPrefix(r.Backend, "tcp://"); ok {
		return &dynamic.Configuration{TCP: m.tcp(service, address, r.Hosts)}
	}
	return &dynamic.Configuration{HTTP: m.http(service, r.Backend, r.Hosts)}
}

func (m Mapping) http(service, url string, hosts []provider.Host) *dynamic.HTTPConfiguration {
	routers := make(map[string]*dynamic.Router)
	for _, host := range hosts {
		routers[service+".http."+host.String()] = &dynamic.Router{
			EntryPoints: entryPoints(m.HTTPEntryPoint),
			Service:     service,
			Rule:        rule(matchHost, host),
			Priority:    Priority,
		}
		if m.HTTPSEntryPoint != "" {
			routers[service+".https."+host.String()] = &dynamic.Router{
				EntryPoints: entryPoints(m.HTTPSEntryPoint),
				Service:     service,
				Rule:        rule(matchHost, host),
				Priority:    Priority,
				TLS:         &dynamic.RouterTLSConfig{CertResolver: m.CertResolver},
			}
		}
	}
	passHostHeader := true
	return &dynamic.HTTPConfiguration{
		Routers: routers,
		Services: map[string]*dynamic.Service{service: {LoadBalancer: &dynamic.ServersLoadBalancer{
			Servers:        []dynamic.Server{{URL: url}},
			PassHostHeader: &passHostHeader,
		}}},
	}
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
			if router != nil { // it is, where a file has a name and nothing after it
				r.Hosts = appendHost(r.Hosts, matchHost, router.Rule)
			}
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

func entryPoints(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}
