// Package kubernetes is a route provider for Traefik's Kubernetes provider: custom resources of the group traefik.io in one
// namespace, and Services by which Traefik finds what is not in the cluster.
//
//	config, namespace, err := kubernetes.Config("")
//	...
//	p, err := kubernetes.New(config, namespace, &kubernetes.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"})
//
// With Traefik's static configuration: --providers.kubernetescrd. The rights that a Provider needs are in
// deploy/kubernetes/rbac.yaml.
//
// A route is these objects, named alike:
//   - a headless Service without selector, and the EndpointSlice that says where it leads (with [Options.Endpoints] an
//     Endpoints object, too);
//   - an IngressRoute for each entry point, and one more for each host with a certificate of its own; or an
//     IngressRouteTCP where TLS is passed through.
//
// They refer to that Service whether it leads to the instance or to the gateway. Traefik learns of Services and of what
// refers to them in no particular order, so a reference that changes could be read before what it refers to is known. The
// slice alone is one object, and a change of address is one write for all hosts of the route.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/netsoc/webspaced/provider"
)

// Options say what the objects contain. The zero value suits a Traefik that terminates no TLS.
type Options struct {
	// Deployment marks what is ours: deployments of different names can share a namespace. A DNS label; empty: "webspaced".
	Deployment string
	// HTTPEntryPoint takes plain HTTP. Empty: the entry points that Traefik uses by default.
	HTTPEntryPoint string
	// HTTPSEntryPoint takes TLS, which Traefik terminates for http:// backends and passes through to tcp:// ones.
	// Empty: none is terminated, and what is passed through comes in at Traefik's default entry points.
	HTTPSEntryPoint string
	// DefaultSecret is the name of the Secret with the certificate for the hosts that have none of their own. Empty:
	// Traefik's own certificates.
	DefaultSecret string
	// GatewayService is the name of a Service in the namespace at whose cluster IP the gateway is reached: that of a backend
	// whose host is GatewayHost. Empty: the gateway is given by its address, as instances are.
	GatewayService string
	// GatewayHost is the host in the gateway's backends. Empty: GatewayService.
	GatewayHost string
	// Endpoints are written besides EndpointSlices. Traefik 2 reads those, Traefik 3 these.
	Endpoints bool
	// QPS and Burst bound the requests to the API server: so many a second, and so many at once before that counts. A new
	// route takes about four. Zero: what the config given to New says; if that says nothing, 200 and 400, with which a
	// thousand webspaces are there in half a minute.
	QPS   float32
	Burst int
	// Timeout of one request to the API server. Zero: 10 s.
	Timeout time.Duration
}

// Provider writes routes to an API server. It implements [provider.Provider] and [provider.Watcher].
type Provider struct {
	client    dynamic.Interface
	namespace string
	timeout   time.Duration
	mapping   mapping
}

var (
	_ provider.Provider = (*Provider)(nil)
	_ provider.Watcher  = (*Provider)(nil)
)

// Config returns how the API server is reached, and the namespace that goes with it: by the current context of a kubeconfig
// file, or, without a path, as a pod of the cluster.
func Config(kubeconfig string) (*rest.Config, string, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("configuration of Kubernetes: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("namespace: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return config, namespace, nil
}

// New returns a Provider on a namespace, which it does not look at yet. Errors are InvalidArgument.
func New(config *rest.Config, namespace string, opts *Options) (*Provider, error) {
	if opts == nil {
		opts = &Options{}
	}
	if !provider.IsLabel(namespace) {
		return nil, fmt.Errorf("namespace %q is not a DNS label: %w", namespace, errdefs.ErrInvalidArgument)
	}
	m, err := newMapping(opts)
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.QPS = first(opts.QPS, config.QPS, 200)
	config.Burst = first(opts.Burst, config.Burst, 400)
	config.WarningHandler = rest.NoWarnings{} // of Endpoints being deprecated, with each request
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("configuration of Kubernetes: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return &Provider{client: client, namespace: namespace, timeout: first(opts.Timeout, 10*time.Second), mapping: m}, nil
}

// first returns the first that is not zero.
func first[T comparable](values ...T) T {
	var zero T
	for _, v := range values {
		if v != zero {
			return v
		}
	}
	return zero
}

// Routes implements [provider.Provider].
func (p *Provider) Routes(ctx context.Context) ([]provider.Route, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	current, err := p.read(ctx, nil)
	if err != nil {
		return nil, err
	}
	routes := make([]provider.Route, 0, len(current.routes))
	for name, objects := range current.routes {
		routes = append(routes, p.mapping.route(name, objects, current.gateway))
	}
	return routes, nil
}

// writers is how many routes are written at a time.
const writers = 16

// attempts at a route that somebody else changes at the same time.
const attempts = 4

// Apply implements [provider.Provider]. An object that says what it should already is not written.
func (p *Provider) Apply(ctx context.Context, changes provider.Changes) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if changes.Empty() {
		return nil
	}
	names := make([]string, 0, len(changes.Put)+len(changes.Delete))
	for _, r := range changes.Put {
		names = append(names, r.Name)
	}
	names = append(names, changes.Delete...)
	current, err := p.read(ctx, names)
	if err != nil {
		return err
	}

	errs := make([]error, len(names)+1)
	var group errgroup.Group
	group.SetLimit(writers)
	change := func(i int, name string, render func(cluster) (objects, error)) {
		if errs[len(errs)-1] = ctx.Err(); ctx.Err() != nil {
			return
		}
		group.Go(func() error {
			if err := p.change(ctx, name, current, render); err != nil {
				errs[i] = &provider.RouteError{Route: name, Err: err}
			}
			return nil
		})
	}
	for i, r := range changes.Put {
		change(i, r.Name, func(now cluster) (objects, error) { return p.mapping.objects(r, now.gateway) })
	}
	for i, name := range changes.Delete {
		change(len(changes.Put)+i, name, func(cluster) (objects, error) { return nil, nil })
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

// change makes the objects of one route those that render returns, starting from what was read.
func (p *Provider) change(ctx context.Context, name string, now cluster, render func(cluster) (objects, error)) error {
	for attempt := 1; ; attempt++ {
		want, err := render(now)
		if err != nil {
			return err
		}
		err = p.converge(ctx, now.routes[name], want)
		if !errdefs.IsConflict(err) {
			return err
		}
		if attempt == attempts {
			return fmt.Errorf("somebody else changes it all the time: %w: %w", errdefs.ErrUnavailable, err)
		}
		if now, err = p.read(ctx, []string{name}); err != nil {
			return err
		}
	}
}

// target is where a backend leads.
type target struct {
	scheme string // http, https or tcp
	addr   netip.Addr
	port   int64
}

// target of a valid backend. Errors are InvalidArgument, or Unavailable while the gateway's Service has no address.
func (m mapping) target(backend string, gateway gateway) (target, error) {
	u, err := url.Parse(backend)
	if err != nil {
		return target{}, fmt.Errorf("backend %q: %w: %w", backend, errdefs.ErrInvalidArgument, err)
	}
	port, err := strconv.ParseInt(u.Port(), 10, 32)
	if err != nil {
		return target{}, fmt.Errorf("backend %q: %w: %w", backend, errdefs.ErrInvalidArgument, err)
	}
	t := target{scheme: u.Scheme, port: port}
	if m.gatewayHost != "" && u.Hostname() == m.gatewayHost {
		t.addr = gateway.addr
		return t, gateway.err
	}
	invalid := func(why string) (target, error) {
		return target{}, fmt.Errorf("backend %q: %s: %w", backend, why, errdefs.ErrInvalidArgument)
	}
	if t.addr, err = netip.ParseAddr(u.Hostname()); err != nil {
		return invalid("an EndpointSlice takes addresses; name the gateway's Service for a host name to be the gateway's")
	}
	if a := t.addr; a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.Is4In6() {
		return invalid("Kubernetes takes no loopback, link-local, multicast or mapped address, and no zone")
	}
	return t, nil
}

// backend is what target was made from.
func (m mapping) backend(t target, gateway gateway) string {
	host := t.addr.String()
	switch {
	case gateway.err == nil && t.addr == gateway.addr:
		host = m.gatewayHost
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	return t.scheme + "://" + host + ":" + strconv.FormatInt(t.port, 10)
}
