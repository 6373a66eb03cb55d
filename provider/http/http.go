// Package http is a route provider for Traefik's HTTP provider: an http.Handler that Traefik asks for all routes, again and
// again.
//
//	p, err := http.New(&http.Options{HTTPEntryPoint: "web"})
//	...
//	server := &http.Server{Addr: "127.0.0.1:8082", Handler: p}
//
// With Traefik's static configuration: --providers.http.endpoint=http://127.0.0.1:8082/. Traefik asks every 5 s (its
// pollInterval), and takes what it gets for all there is. After failures it takes up to a minute and a half until it asks
// again.
//
// The answer has the private keys of certificates in it: have the server listen where only Traefik can ask.
package http

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

// Options say what the configuration contains. The zero value suits a Traefik that terminates no TLS.
type Options struct {
	// Deployment begins the name of each router and service, so that those of several deployments can be told apart. A DNS
	// label; empty: "webspaced".
	Deployment string
	// HTTPEntryPoint takes plain HTTP. Empty: the entry points that Traefik uses by default.
	HTTPEntryPoint string
	// HTTPSEntryPoint takes TLS, which Traefik terminates for http:// backends and passes through to tcp:// ones.
	// Empty: none is terminated, and what is passed through comes in at Traefik's default entry points.
	HTTPSEntryPoint string
	// CertResolver is Traefik's certificate resolver for hosts that have no certificate of their own. Empty: Traefik's own
	// certificates.
	CertResolver string
	// CertDomains are the names in the certificate that CertResolver is to obtain, such as a wildcard. Empty: one
	// certificate for each host.
	CertDomains []string
	// ChallengeURL is where ACME's HTTP-01 challenges of all hosts go. Empty: with the rest.
	ChallengeURL string
}

// Provider keeps routes in memory and serves them to Traefik. It implements [provider.Provider] and [http.Handler]. A new
// one has no routes: they are written to it again after a restart, and Traefik keeps those that it has until then.
type Provider struct {
	mapping traefik.Mapping

	mu       sync.Mutex
	complete bool // the first changes have come, which have all routes in them
	routes   map[string]provider.Route
	current  *document // of routes; nil when they have changed
}

var (
	_ provider.Provider = (*Provider)(nil)
	_ http.Handler      = (*Provider)(nil)
)

// document is an answer.
type document struct {
	body []byte
	etag string
}

// New returns a Provider without routes. Until the first [Provider.Apply], which puts all of them, requests are answered with
// 503 (Service Unavailable), since Traefik would drop what is missing. Errors are InvalidArgument.
func New(opts *Options) (*Provider, error) {
	if opts == nil {
		opts = &Options{}
	}
	p := &Provider{
		routes: make(map[string]provider.Route),
		mapping: traefik.Mapping{
			Deployment:      opts.Deployment,
			HTTPEntryPoint:  opts.HTTPEntryPoint,
			HTTPSEntryPoint: opts.HTTPSEntryPoint,
			CertResolver:    opts.CertResolver,
			CertDomains:     slices.Clone(opts.CertDomains),
			ChallengeURL:    opts.ChallengeURL,
		},
	}
	if opts.Deployment == "" {
		p.mapping.Deployment = "webspaced"
	}
	if err := p.mapping.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Routes implements [provider.Provider].
func (p *Provider) Routes(ctx context.Context) ([]provider.Route, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	routes := make([]provider.Route, 0, len(p.routes))
	for _, r := range p.routes {
		routes = append(routes, clone(r))
	}
	slices.SortFunc(routes, func(a, b provider.Route) int { return strings.Compare(a.Name, b.Name) })
	return routes, nil
}

// Apply implements [provider.Provider]. Traefik sees all changes of one call at once.
func (p *Provider) Apply(ctx context.Context, changes provider.Changes) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, r := range changes.Put {
		err := r.Validate()
		if err == nil {
			err = p.mapping.Check(r)
		}
		if err != nil {
			errs = append(errs, &provider.RouteError{Route: r.Name, Err: err})
			continue
		}
		if have, ok := p.routes[r.Name]; !ok || !have.Equal(r) {
			p.routes[r.Name] = clone(r)
			p.current = nil
		}
	}
	for _, name := range changes.Delete {
		if _, ok := p.routes[name]; ok {
			delete(p.routes, name)
			p.current = nil
		}
	}
	p.complete = true
	return errors.Join(errs...)
}

// clone copies what the caller may change.
func clone(r provider.Route) provider.Route {
	r.Hosts, r.Certificates = slices.Clone(r.Hosts), slices.Clone(r.Certificates)
	return r
}

// ServeHTTP answers GET and HEAD with the complete configuration, whatever the path.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
		return
	}
	d, err := p.document()
	if errdefs.IsUnavailable(err) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	} else if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Etag", d.etag)
	header.Set("Cache-Control", "no-store") // it has private keys in it
	if slices.Contains(strings.FieldsFunc(r.Header.Get("If-None-Match"), func(r rune) bool { return r == ',' || r == ' ' }), d.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(d.body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(d.body) // or the client has gone
	}
}

// document returns the answer for the routes as they are. It is made when it is asked for, once for all who ask.
func (p *Provider) document() (*document, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.complete {
		return nil, fmt.Errorf("the routes are not complete yet: %w", errdefs.ErrUnavailable)
	}
	if p.current == nil {
		body, err := json.Marshal(p.configuration())
		if err != nil {
			return nil, fmt.Errorf("encode the routes: %w", err)
		}
		sum := sha256.Sum256(body)
		p.current = &document{body: body, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
	}
	return p.current, nil
}

// configuration is that of all routes, in an order that stays. What is empty is not there: Traefik refuses it.
func (p *Provider) configuration() *dynamic.Configuration {
	web := &dynamic.HTTPConfiguration{
		Routers:  make(map[string]*dynamic.Router),
		Services: make(map[string]*dynamic.Service),
		// Nothing refers to it. Traefik takes a configuration without anything for none, and would keep the last route.
		Middlewares: map[string]*dynamic.Middleware{p.mapping.Deployment: {AddPrefix: &dynamic.AddPrefix{Prefix: "/"}}},
	}
	tcp := &dynamic.TCPConfiguration{
		Routers:  make(map[string]*dynamic.TCPRouter),
		Services: make(map[string]*dynamic.TCPService),
	}
	tls := &dynamic.TLSConfiguration{}
	for _, name := range slices.Sorted(maps.Keys(p.routes)) {
		one := p.mapping.Configuration(p.routes[name])
		if one.HTTP != nil {
			maps.Copy(web.Routers, one.HTTP.Routers)
			maps.Copy(web.Services, one.HTTP.Services)
		}
		if one.TCP != nil {
			maps.Copy(tcp.Routers, one.TCP.Routers)
			maps.Copy(tcp.Services, one.TCP.Services)
		}
		if one.TLS != nil {
			tls.Certificates = append(tls.Certificates, one.TLS.Certificates...)
		}
	}
	all := &dynamic.Configuration{HTTP: web}
	if len(tcp.Routers) > 0 {
		all.TCP = tcp
	}
	if len(tls.Certificates) > 0 {
		all.TLS = tls
	}
	return all
}
