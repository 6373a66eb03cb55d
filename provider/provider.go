// Package provider defines routes and what writes them where a reverse proxy reads them.
//
// A [Route] says which host names a webspace answers to and where a reverse proxy sends them: straight to the
// webspace's instance, or to the gateway, which boots the instance first. A [Provider] keeps the routes of one
// deployment of webspaced in one place that a reverse proxy follows: a directory, a key-value store, an API.
//
// Who writes a provider implements the two methods of [Provider] and runs providertest.Run against it. Deciding which
// routes there should be is not a provider's business: [Plan] compares the desired routes with the current ones.
package provider

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Route is what a reverse proxy needs to know about one webspace.
type Route struct {
	// Name identifies the route within its deployment: a DNS label, such as "ws-u1000".
	Name string
	// Hosts the route answers to, sorted, without duplicates; never empty.
	Hosts []Host
	// Backend is where requests go: "http://HOST:PORT" or "https://HOST:PORT" for HTTP that the proxy terminates,
	// "tcp://HOST:PORT" for TLS that it passes through by SNI. HOST is an address, or a host name for the gateway.
	Backend string
	// Certificates of those hosts that have one of their own, sorted by host, without duplicates. All others are served
	// with the one that the reverse proxy uses by default. Without meaning for a tcp:// backend, which can have none.
	Certificates []Certificate
}

// Validate reports the first reason why r can not be written, as InvalidArgument. Providers may rely on it: the
// daemon never hands them a route that fails it.
func (r Route) Validate() error {
	if !IsLabel(r.Name) {
		return fmt.Errorf("route name %q is not a DNS label: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	if len(r.Hosts) == 0 {
		return fmt.Errorf("route %s has no host: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	for i, h := range r.Hosts {
		if h.name == "" {
			return fmt.Errorf("route %s has an empty host: %w", r.Name, errdefs.ErrInvalidArgument)
		}
		if i > 0 && r.Hosts[i-1].name >= h.name {
			return fmt.Errorf("hosts of route %s are not sorted and unique: %w", r.Name, errdefs.ErrInvalidArgument)
		}
	}
	if err := ValidateBackend(r.Backend); err != nil {
		return fmt.Errorf("route %s: %w", r.Name, err)
	}
	if len(r.Certificates) > 0 && strings.HasPrefix(r.Backend, "tcp://") {
		return fmt.Errorf("route %s passes TLS through, and has certificates: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	for i, c := range r.Certificates {
		if err := c.Validate(); err != nil {
			return fmt.Errorf("route %s: %w", r.Name, err)
		}
		if i > 0 && r.Certificates[i-1].Host.name >= c.Host.name {
			return fmt.Errorf("certificates of route %s are not sorted and unique: %w", r.Name, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(r.Hosts, c.Host) {
			return fmt.Errorf("certificate of route %s is for %s, which is no host of it: %w", r.Name, c.Host, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// ValidateBackend reports what keeps a text from being the backend of a route, as InvalidArgument.
func ValidateBackend(backend string) error {
	invalid := func(why string) error {
		return fmt.Errorf("backend %q: %s: %w", backend, why, errdefs.ErrInvalidArgument)
	}
	u, err := url.Parse(backend)
	if err != nil {
		return invalid("not a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "tcp" {
		return invalid("the scheme is not http, https or tcp")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != u.Port() {
		return invalid("the port is not a number from 1 to 65535")
	}
	if !isBackendHost(u.Hostname()) {
		return invalid("neither an address nor a host name")
	}
	// Anything beyond scheme://host:port would have to survive each proxy's own syntax; nothing needs it.
	if u.String() != u.Scheme+"://"+u.Host || u.String() != backend {
		return invalid("more than scheme, host and port")
	}
	return nil
}

// isBackendHost reports whether s is an address or a host name, one of a single label ("gateway") included.
func isBackendHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if IsLabel(s) {
		return !isNumber(s)
	}
	_, err := ParseHost(s)
	return err == nil
}

// Equal reports whether r and other say the same.
func (r Route) Equal(other Route) bool {
	return r.Name == other.Name && r.Backend == other.Backend && slices.Equal(r.Hosts, other.Hosts) &&
		slices.Equal(r.Certificates, other.Certificates)
}

// Certificate returns that of a host; the zero Certificate if it has none of its own.
func (r Route) Certificate(host Host) Certificate {
	for _, c := range r.Certificates {
		if c.Host == host {
			return c
		}
	}
	return Certificate{}
}

// Provider keeps the routes of one deployment where a reverse proxy reads them.
//
// Everything a provider writes carries a mark of its deployment, and a provider never changes what does not carry it:
// other people's routes, and those of other deployments, are not there as far as it is concerned.
//
// Implementations are safe for concurrent use; calls for different routes may overlap, and those for one route are
// serialised by the caller. Errors are classes of github.com/containerd/errdefs: Unavailable when the store can not be
// reached or answers with a fault of its own (the caller tries again, with a back-off), PermissionDenied when the store
// forbids it, InvalidArgument for a route that can not be expressed, such as one with a kind of certificate that the store
// has no way to say. Every call ends with ctx.
type Provider interface {
	// Routes returns all routes of this deployment that stand in the store. A stored route that no longer says what
	// this provider would write for it (somebody edited it, it is torn, it comes from another version) is returned by
	// its name with an empty Backend, so that it differs from every desired route and is written anew or removed. One
	// that was edited to say another route, whole and as this provider would write it, may be returned as that one.
	Routes(ctx context.Context) ([]Route, error)

	// Apply carries out changes. It is idempotent: putting a route that stands and deleting one that does not are
	// successes. Each put replaces the route in one step: a reverse proxy sees the old one or the new one, never
	// neither. Each change is tried whether or not others fail; failures are joined errors of type [*RouteError],
	// among them AlreadyExists when something that is not this deployment's is in the place of a put. When nothing
	// at all can be done (the store is away), one plain error says so. When ctx ends half-way, what is done stays done.
	//
	// The daemon's first Apply puts all routes that do not stand yet, even if there are none.
	Apply(ctx context.Context, changes Changes) error
}

// Watcher is a [Provider] that notices what others do to its routes.
type Watcher interface {
	// Watch calls changed when something that the provider has written has been changed or removed by somebody else, until
	// ctx ends, which is its only way to return unless what it watches breaks. It may call it needlessly, and says nothing
	// of what happens while nobody watches. changed does not block.
	Watch(ctx context.Context, changed func()) error
}

// RouteError is the failure of one change.
type RouteError struct {
	Route string // name of the route
	Err   error
}

func (e *RouteError) Error() string { return "route " + e.Route + ": " + e.Err.Error() }
func (e *RouteError) Unwrap() error { return e.Err }

// RouteErrors takes the failures of single changes out of an error of [Provider.Apply], by route. There are none in one that
// is about all changes.
func RouteErrors(err error) map[string]error {
	failed := make(map[string]error)
	var collect func(error)
	collect = func(err error) {
		switch e := err.(type) {
		case *RouteError:
			failed[e.Route] = e
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				collect(err)
			}
		case interface{ Unwrap() error }:
			collect(e.Unwrap())
		}
	}
	collect(err)
	return failed
}
