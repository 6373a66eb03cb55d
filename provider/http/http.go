// Package http is a route provider for Traefik's HTTP provider: a handler from which Traefik polls its configuration.
//
//	p, err := http.New(nil)
//	go nethttp.Serve(listener, p) // for Traefik alone: private keys of certificates are in what it serves
//
// With Traefik's static configuration: --providers.http.endpoint=http://127.0.0.1:8082/ and, to follow changes soon,
// --providers.http.pollinterval=1s.
package http

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	nethttp "net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

// Options say what the configuration contains. The zero value suits a Traefik that terminates no TLS.
type Options struct {
	// Deployment begins the names of routers and services: configurations of different deployments go together. A DNS
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
	// CertDomains are the names in the certificate that CertResolver obtains. Empty: one certificate for each host.
	CertDomains []string
	// ChallengeURL is where the HTTP-01 challenges of all hosts go. Empty: with the rest.
	ChallengeURL string
}

// Provider keeps routes in memory and serves them. It implements [provider.Provider] and [nethttp.Handler].
//
// Until the first [Provider.Apply], which has all routes in it, requests are answered with 503, and Traefik keeps what it
// has: whatever it had from a daemon before this one goes on being served.
type Provider struct {
	mapping traefik.Mapping

	mu      sync.Mutex
	applied bool
	routes  map[string]provider.Route
	body    []byte // the configuration; nil if it has to be made anew
	etag    string
}

var _ provider.Provider = (*Provider)(nil)

// New returns a Provider without routes. Errors are InvalidArgument.
func New(opts *Options) (*Provider, error) {
	if opts == nil {
		opts = &Options{}
	}
	p := &Provider{routes: make(map[string]provider.Route), mapping: traefik.Mapping{
		Deployment:      opts.Deployment,
		HTTPEntryPoint:  opts.HTTPEntryPoint,
		HTTPSEntryPoint: opts.HTTPSEntryPoint,
		CertResolver:    opts.CertResolver,
		CertDomains:     slices.Clone(opts.CertDomains),
		ChallengeURL:    opts.ChallengeURL,
	}}
	if p.mapping.Deployment == "" {
		p.mapping.Deployment = "webspaced"
	}
	if err := p.mapping.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Routes implements [provider.Provider]. After a restart there are none.
func (p *Provider) Routes(ctx context.Context) ([]provider.Route, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.routes)), nil
}

// Apply implements [provider.Provider]. Traefik sees all of the changes at its next poll.
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
		if old, ok := p.routes[r.Name]; !ok || !old.Equal(r) {
			r.Hosts, r.Certificates = slices.Clone(r.Hosts), slices.Clone(r.Certificates)
			p.routes[r.Name] = r
			p.body = nil
		}
	}
	for _, name := range changes.Delete {
		if _, ok := p.routes[name]; ok {
			delete(p.routes, name)
			p.body = nil
		}
	}
	p.applied = true
	return errors.Join(errs...)
}

// ServeHTTP serves the whole configuration, as JSON, with an ETag.
func (p *Provider) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	if r.Method != nethttp.MethodGet && r.Method != nethttp.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		nethttp.Error(w, "only GET and HEAD are allowed", nethttp.StatusMethodNotAllowed)
		return
	}
	body, etag, err := p.configuration()
	if err != nil {
		w.Header().Set("Retry-After", "1")
		nethttp.Error(w, "the routes are not known yet", nethttp.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(nethttp.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == nethttp.MethodGet {
		_, _ = w.Write(body)
	}
}

// configuration returns what Traefik is to have. The error is Unavailable.
func (p *Provider) configuration() (body []byte, etag string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.applied {
		return nil, "", fmt.Errorf("the routes are not known yet: %w", errdefs.ErrUnavailable)
	}
	if p.body != nil {
		return p.body, p.etag, nil
	}
	all := &dynamic.Configuration{HTTP: &dynamic.HTTPConfiguration{
		Routers: make(map[string]*dynamic.Router), Services: make(map[string]*dynamic.Service),
		// Traefik takes a configuration with nothing at all in it for none. This does nothing, and no router uses it.
		Middlewares: map[string]*dynamic.Middleware{
			p.mapping.Deployment + ".sentinel": {AddPrefix: &dynamic.AddPrefix{Prefix: "/webspaced"}},
		},
	}}
	for _, name := range slices.Sorted(maps.Keys(p.routes)) {
		merge(all, p.mapping.Configuration(p.routes[name]))
	}
	if p.body, err = json.Marshal(all); err != nil {
		return nil, "", fmt.Errorf("encode the routes: %w: %w", errdefs.ErrUnavailable, err)
	}
	sum := sha256.Sum256(p.body)
	p.etag = `"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `"`
	return p.body, p.etag, nil
}

// merge adds the configuration of one route. Names of different routes differ.
func merge(all, one *dynamic.Configuration) {
	if one.HTTP != nil {
		maps.Copy(all.HTTP.Routers, one.HTTP.Routers)
		maps.Copy(all.HTTP.Services, one.HTTP.Services)
	}
	if one.TCP != nil {
		if all.TCP == nil {
			all.TCP = &dynamic.TCPConfiguration{Routers: make(map[string]*dynamic.TCPRouter), Services: make(map[string]*dynamic.TCPService)}
		}
		maps.Copy(all.TCP.Routers, one.TCP.Routers)
		maps.Copy(all.TCP.Services, one.TCP.Services)
	}
	if one.TLS != nil {
		if all.TLS == nil {
			all.TLS = &dynamic.TLSConfiguration{}
		}
		all.TLS.Certificates = append(all.TLS.Certificates, one.TLS.Certificates...)
	}
}
