package webspace

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/webspace/internal/keylock"
)

// routable reports whether the webspace can have a route at all.
func (v view) routable() bool {
	return v.known && v.bad == nil && !v.deleting && !v.record.Creating
}

// gateways are where reverse proxies reach the gateway: for requests, and for TLS connections that they pass through.
// Without the latter, nothing is passed through.
type gateways struct{ http, tls string }

// desiredRoute says which route a webspace should have, given the host names it owns, what is known of its HTTP port,
// and the backend of the route it has:
//
//	mode    | webspace                              | route
//	--------+---------------------------------------+------------------------------------------------------
//	any     | not routable, or owns no host name    | none
//	any     | takes TLS, which is not passed through| none
//	inline  | anything else                         | gateway
//	direct  | not running, about to stop, no address| gateway
//	direct  | running, port silent                  | gateway, which can say so
//	direct  | running, port accepts                 | instance
//	direct  | running, port not probed yet          | instance if it is there already, else gateway
//
// The last row keeps the routes of running sites where they are while webspaced restarts. That of a webspace that takes TLS
// itself passes it through, to the gateway's or the instance's side.
func desiredRoute(name string, v view, hosts []provider.Host, port readiness, current string, mode Mode, to gateways) (provider.Route, bool) {
	scheme, gateway := "http://", to.http
	if v.record.Config.SNIPassthrough {
		scheme, gateway = "tcp://", to.tls
	}
	if !v.routable() || len(hosts) == 0 || gateway == "" {
		return provider.Route{}, false
	}
	route := provider.Route{Name: name, Hosts: hosts, Backend: gateway}
	if mode == Inline || v.detour || v.status != StatusRunning || !v.address.IsValid() {
		return route, true
	}
	instance := scheme + netip.AddrPortFrom(v.address, uint16(v.record.Config.HTTPPort)).String()
	if port == accepting || port == unknown && current == instance {
		route.Backend = instance
	}
	return route, true
}

// routes are the routes that stand in the provider's store, as far as is known.
type routes struct {
	locks keylock.Locks[string] // one change of a route at a time

	mu      sync.Mutex
	read    bool   // the store was read, and all routes were put: what is not in current does not stand
	clock   uint64 // counts changes
	current map[string]provider.Route
	changes map[string]routeChange // the last change of each route that is not long past
}

type routeChange struct {
	clock uint64
	moved time.Time // when the route was last taken to another backend, or away
}

func (r *routes) now() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *routes) known() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read
}

func (r *routes) get(name string) (provider.Route, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	route, ok := r.current[name]
	return route, ok
}

// set notes what was written: a route, or none.
func (r *routes) set(name string, route provider.Route, stands bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		r.current, r.changes = make(map[string]provider.Route), make(map[string]routeChange)
	}
	change := r.changes[name]
	if before, ok := r.current[name]; ok && (!stands || before.Backend != route.Backend) {
		change.moved = time.Now()
	}
	r.clock++
	change.clock = r.clock
	r.changes[name] = change
	if stands {
		r.current[name] = route
	} else {
		delete(r.current, name)
	}
}

// doubt notes that nobody knows what stands: a change that failed may have been made all the same. No desired route
// equals what is noted, so that the next update writes it.
func (r *routes) doubt(name string) { r.set(name, provider.Route{Name: name}, true) }

// replace takes in a full read of the store that began at the given clock. Of routes that have changed since then, what
// was written is kept.
func (r *routes) replace(read []provider.Route, since uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[string]provider.Route, len(read))
	changes := make(map[string]routeChange)
	for _, route := range read {
		next[route.Name] = route
	}
	for name, change := range r.changes {
		if change.clock > since {
			delete(next, name)
			if route, ok := r.current[name]; ok {
				next[name] = route
			}
		}
		if change.clock > since || time.Since(change.moved) < time.Minute {
			changes[name] = change
		}
	}
	r.current, r.changes = next, changes
}

// complete notes that the store was read and all routes were put.
func (r *routes) complete() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = true
}

func (r *routes) all() []provider.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.current))
}

func (r *routes) movedAt(name string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes[name].moved
}

// putAll puts the routes of the first full read in one go: stores take ten thousand at once in the time of some hundred one by
// one, and one that starts empty can serve what it has from then on. Nothing else changes routes before.
func (m *Manager) putAll(ctx context.Context, routes []provider.Route) error {
	err := m.opts.Provider.Apply(ctx, provider.Changes{Put: routes})
	failed := provider.RouteErrors(err)
	if err != nil && len(failed) == 0 {
		return fmt.Errorf("put all routes: %w", err)
	}
	for _, route := range routes {
		if failed[route.Name] == nil {
			m.routes.set(route.Name, route, true)
		} else {
			m.routes.doubt(route.Name)
		}
	}
	m.routes.complete()
	return nil
}

// updateRoute makes the route of a webspace agree with what is known of it. Without a change nothing is written.
func (m *Manager) updateRoute(ctx context.Context, name string) error {
	if m.opts.Provider == nil {
		return nil
	}
	unlock, err := m.routes.locks.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if !m.routes.known() {
		return fmt.Errorf("the routes have not been read yet: %w", errdefs.ErrUnavailable)
	}
	current, stands := m.routes.get(name)
	route, wanted := m.desired(name, current)
	var changes provider.Changes
	switch {
	case wanted && (!stands || !route.Equal(current)):
		changes.Put = []provider.Route{route}
	case !wanted && stands:
		changes.Delete = []string{name}
	default:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.opts.Provider.Apply(ctx, changes); err != nil {
		m.routes.doubt(name)
		return fmt.Errorf("provider: %w", err)
	}
	m.routes.set(name, route, wanted)
	m.tell(name, NoticeRoute, m.routeMessage(route))
	m.log.Debug("route changed", "webspace", name, "backend", route.Backend, "hosts", len(route.Hosts))
	return nil
}

// desired collects what desiredRoute needs.
func (m *Manager) desired(name string, current provider.Route) (provider.Route, bool) {
	e := m.index.find(name)
	if e == nil {
		return provider.Route{}, false
	}
	v := m.index.look(e)
	has, _ := m.index.owned(e)
	hosts := make([]provider.Host, 0, len(has))
	for _, name := range has {
		if host, err := provider.ParseHost(name); err == nil {
			hosts = append(hosts, host)
		}
	}
	slices.SortFunc(hosts, provider.Host.Compare)
	route, ok := desiredRoute(name, v, hosts, e.activation.readiness(v.record.Config.HTTPPort), current.Backend, m.opts.Mode,
		gateways{http: m.opts.Gateway, tls: m.opts.TLSGateway})
	route.Certificates = m.certificates.of(m.certified(name), current)
	return route, ok
}

// settle changes the route of a webspace that is about to end, and waits until the reverse proxy has followed.
func (m *Manager) settle(ctx context.Context, name string) error {
	if m.opts.Provider == nil {
		return nil
	}
	if err := m.updateRoute(ctx, name); err != nil {
		return err
	}
	if m.opts.Mode == Inline {
		return nil
	}
	// Reverse proxies do not say when they have read a change; they promise a time within which they do.
	if wait := time.Until(m.routes.movedAt(name).Add(m.opts.Settle)); wait > 0 {
		return sleep(ctx, wait)
	}
	return nil
}

// hosts returns the host names that a record claims, the default domain first. Custom domains that cannot be had, which
// only an edit behind our back or a change of the platform's own domain brings about, are left out.
func (m *Manager) hosts(label string, r record) []string {
	var hosts []string
	if label != "" {
		hosts = append(hosts, label+"."+m.zone)
	}
	for _, domain := range r.Domains {
		if r.Checks[domain].Lapsed {
			continue
		}
		if host, err := parseDomain(domain, m.zone); err == nil && !slices.Contains(hosts, host.String()) {
			hosts = append(hosts, host.String())
		}
	}
	return hosts
}

// Summary is what is known of a webspace without asking anybody.
type Summary struct {
	Webspace
	Instance string
	Status   Status
	Address  netip.Addr
	Hosts    []string // that it answers to
	// Backend of its route; empty if it has none.
	Backend string
	// Problem is why it is quarantined, has no route, has a port forward that does not work or could not be booted, for its
	// owner and the operator.
	Problem string
}

// Summaries returns all webspaces by user ID, as they were when they were last read.
func (m *Manager) Summaries() []Summary {
	entries := m.index.all()
	summaries := make([]Summary, 0, len(entries))
	for _, e := range entries {
		if summary, ok := m.summary(e); ok {
			summaries = append(summaries, summary)
		}
	}
	return summaries
}

// Summary returns that of one user's webspace, if there is one.
func (m *Manager) Summary(id identity.UserID) (Summary, bool) {
	e := m.index.find(instanceName(m.opts.Prefix, id))
	if e == nil {
		return Summary{}, false
	}
	return m.summary(e)
}

func (m *Manager) summary(e *entry) (Summary, bool) {
	v := m.index.look(e)
	if !v.known {
		return Summary{}, false
	}
	has, _ := m.index.owned(e)
	route, _ := m.routes.get(e.name)
	w := v.record.Webspace.clone()
	w.User = e.user
	return Summary{
		Webspace: w, Instance: e.name, Status: v.status, Address: v.address,
		Hosts: has, Backend: route.Backend, Problem: m.problem(e),
	}, true
}

// problem is what Summary.Problem says of a webspace.
func (m *Manager) problem(e *entry) string {
	v := m.index.look(e)
	_, lost := m.index.owned(e)
	problems := slices.Clone(v.problems)
	if v.bad != nil {
		problems = append(problems, "quarantined: "+v.bad.Error())
	}
	if v.record.Creating {
		problems = append(problems, "its creation is not finished; unless it is under way, create it again or delete it")
	}
	for _, host := range lost {
		problems = append(problems, host+" belongs to another webspace")
	}
	problems = append(problems, m.domainProblems(v)...)
	problems = append(problems, m.certificates.problems(e.name)...)
	problems = append(problems, m.portProblems(e)...)
	if err := e.activation.lastError(); err != nil {
		problems = append(problems, "could not be started: "+err.Error())
	}
	return strings.Join(problems, "; ")
}

func (a *activation) lastError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lastErr
}
