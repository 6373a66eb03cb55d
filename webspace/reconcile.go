package webspace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
)

// workers is how many webspaces are reconciled at a time, probers how many are probed.
const (
	workers = 8
	probers = 32
)

// Run keeps routes and port forwards in agreement with the webspaces until ctx ends, which is its only way to return.
// Webspaces, routes and port forwards stay as they are then. Events of the runtime only say which webspace to look at;
// what counts is what is read, for each webspace after an event and for all of them now and then, so that lost, doubled
// and reordered events do no harm.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // also when a backend panics: that must end the program, not leave it waiting here
	wg.Go(func() { m.watch(ctx) })
	wg.Go(func() { m.watchRoutes(ctx) })
	wg.Go(func() { m.watchCertificates(ctx) })
	wg.Go(func() { m.recheckDomains(ctx) })
	for range workers {
		wg.Go(func() {
			m.queue.work(ctx, func(name string, waited time.Duration) bool {
				began := time.Now()
				err := m.reconcile(ctx, name)
				if observe := m.opts.Observer.Reconciled; observe != nil {
					observe(waited, time.Since(began), err)
				}
				if err != nil && ctx.Err() == nil {
					m.log.Warn("reconciliation failed", "webspace", name, "error", err)
				}
				return err == nil
			})
		})
	}
	for range probers {
		wg.Go(func() {
			m.probes.work(ctx, func(name string, _ time.Duration) bool {
				m.probe(ctx, name)
				return true
			})
		})
	}
	m.resyncLoop(ctx)
	return ctx.Err()
}

// Sync reads a webspace anew and writes its route anew, if it is to have one.
func (m *Manager) Sync(ctx context.Context, id identity.UserID) error {
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	if _, _, err := m.read(ctx, id); err != nil {
		return err
	}
	name := instanceName(m.opts.Prefix, id)
	m.index.touch(name)
	m.routes.doubt(name)
	return m.reconcile(ctx, name)
}

// dirty marks webspaces to which something has happened: they are read, and their routes made to agree.
func (m *Manager) dirty(names ...string) {
	for _, name := range names {
		m.index.touch(name)
		m.queue.add(name)
	}
}

// reroute marks webspaces whose routes may have to change because of something else.
func (m *Manager) reroute(names ...string) {
	for _, name := range names {
		m.queue.add(name)
	}
}

// watch follows the runtime's events, and opens the stream again whenever it is lost.
func (m *Manager) watch(ctx context.Context) {
	watcher, ok := m.runtime.(Watcher)
	if !ok {
		return
	}
	m.keepWatching(ctx, "lost the runtime's events", func() error {
		return watcher.Watch(ctx, func(event Event) {
			if event.Instance == "" {
				m.requestResync()
			} else if _, ok := instanceUser(m.opts.Prefix, event.Instance); ok {
				m.dirty(event.Instance)
			}
		})
	})
}

// watchRoutes has routes repaired soon after somebody else has changed them.
func (m *Manager) watchRoutes(ctx context.Context) {
	if watcher, ok := m.opts.Provider.(provider.Watcher); ok {
		m.keepWatching(ctx, "lost the route provider's events", func() error { return watcher.Watch(ctx, m.requestResync) })
	}
}

// keepWatching calls watch, which returns when a stream of events is lost, again and again until ctx ends.
func (m *Manager) keepWatching(ctx context.Context, lost string, watch func() error) {
	const longest = 30 * time.Second
	for wait := time.Second; ; wait = min(2*wait, longest) {
		opened := time.Now()
		err := watch()
		if ctx.Err() != nil {
			return
		}
		if time.Since(opened) > longest {
			wait = time.Second
		}
		m.log.Warn(lost, "error", err, "retry_in", wait)
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

func (m *Manager) requestResync() {
	select {
	case m.resync <- struct{}{}:
	default: // one is asked for already
	}
}

// resyncLoop reads everything at the start, when it is asked for, and from time to time.
func (m *Manager) resyncLoop(ctx context.Context) {
	var guard removalGuards
	for failures := 0; ; {
		began := time.Now()
		next, err := m.sync(ctx, &guard)
		if observe := m.opts.Observer.Synced; observe != nil {
			observe(time.Since(began), err)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next = min(time.Second<<min(failures, 5), 30*time.Second)
			failures++
			m.log.Error("not everything could be read; routes stay as they are", "error", err, "retry_in", next)
		default:
			failures = 0
		}
		// However often it is asked for, one a second is enough.
		if sleep(ctx, min(time.Second, next, m.opts.Resync)) != nil {
			return
		}
		timer := time.NewTimer(min(next, m.opts.Resync) - min(time.Second, next, m.opts.Resync))
		select {
		case <-timer.C:
		case <-m.resync:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// sync reads all webspaces and all routes, and queues the webspaces whose routes differ. It returns when to do so again
// at the latest.
func (m *Manager) sync(ctx context.Context, guard *removalGuards) (next time.Duration, err error) {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	since, routesSince := m.index.now(), m.routes.now()
	instances, err := m.runtime.List(ctx, m.opts.Prefix)
	if err != nil {
		return 0, fmt.Errorf("list instances: %w", err)
	}
	var unread error // why the routes are not known; webspaces boot without them all the same
	if m.opts.Provider != nil {
		var stored []provider.Route
		if stored, unread = m.opts.Provider.Routes(ctx); unread == nil {
			m.routes.replace(stored, routesSince)
		}
	}
	labels, err := m.labels(ctx, instances)
	if err != nil {
		return 0, err
	}

	next = m.opts.Resync
	if nameless := m.nameless(instances, labels); !guard.users.allows(nameless, len(instances)) {
		m.log.Warn("most users seem to be gone; looking again before their webspaces lose their names", "gone", len(nameless))
		for name := range nameless {
			if user, ok := instanceUser(m.opts.Prefix, name); ok {
				labels[user] = userLabel{failed: errSuspicious}
			}
		}
	}
	listed := make(map[string]bool, len(instances))
	changed := make(map[string]bool) // whose routes may have to
	for _, instance := range instances {
		user, ok := instanceUser(m.opts.Prefix, instance.Name)
		if !ok {
			continue
		}
		listed[instance.Name] = true
		if labels[user].failed != nil {
			next = recheck
		}
		affected, ok := m.observe(instance, user, labels[user], since)
		if !ok {
			m.dirty(instance.Name) // it changed meanwhile, so read it again
		}
		for _, name := range affected {
			changed[name] = true
		}
		if e, _ := m.unremembered(instance.Name); e != nil || m.unforwarded(instance.Name) {
			changed[instance.Name] = true
		}
	}

	if !m.isSynced() {
		close(m.synced)
		m.log.Info("read all webspaces", "webspaces", len(listed), "took", time.Since(started).Round(time.Millisecond))
	}
	uncertified, orders := m.syncCertificates(ctx, &guard.orders)
	m.reroute(uncertified...)
	if unread != nil {
		return 0, errors.Join(fmt.Errorf("read routes: %w", unread), orders)
	}

	desired := make([]provider.Route, 0, len(listed))
	for name := range listed {
		current, _ := m.routes.get(name)
		if route, ok := m.desired(name, current); ok {
			desired = append(desired, route)
		}
		if _, _, ok := m.unprobed(name); ok {
			m.probes.add(name)
		}
	}
	gone := make(map[string]bool)
	for _, e := range m.index.all() {
		if !listed[e.name] {
			gone[e.name] = true
		}
	}
	if m.opts.Provider != nil {
		changes := provider.Plan(desired, m.routes.all())
		switch {
		case guard.told:
		case len(listed) == 0 && !guard.empty:
			// An engine that comes up may say for a moment that there is nothing, which a store that starts empty would
			// take for all there is.
			guard.empty, next = true, time.Second
			m.routes.complete()
		default:
			all := changes.Put
			if m.routes.known() {
				all = nil // the queue is at work on them already
			}
			if err := m.putAll(ctx, all); err != nil {
				return 0, err
			}
			guard.told = true
		}
		for _, route := range changes.Put {
			changed[route.Name] = true
		}
		for _, name := range changes.Delete {
			gone[name] = true
		}
	}
	if !guard.routes.allows(gone, len(listed)+len(gone)) {
		next = recheck
		m.log.Warn("most webspaces seem to be gone; looking again before their routes are removed", "gone", len(gone), "left", len(listed))
		clear(gone)
	}
	m.dirty(slices.Collect(maps.Keys(gone))...)
	m.reroute(slices.Collect(maps.Keys(changed))...)
	return next, orders
}

// recheck is when to look again after a look that is not to be trusted.
const recheck = 15 * time.Second

// errSuspicious stands in for answers that are not acted upon yet.
var errSuspicious = fmt.Errorf("most users seem to be gone: %w", errdefs.ErrUnavailable)

// nameless returns the webspaces that had a default domain and would lose it by these answers of the directory.
func (m *Manager) nameless(instances []Instance, labels map[identity.UserID]userLabel) map[string]bool {
	names := make(map[string]bool)
	for _, instance := range instances {
		user, ok := instanceUser(m.opts.Prefix, instance.Name)
		if !ok || labels[user].failed != nil || labels[user].label != "" {
			continue
		}
		e := m.index.find(instance.Name)
		if e != nil && m.index.look(e).label != "" || m.storedLabel(instance.Name) != "" {
			names[instance.Name] = true
		}
	}
	return names
}

// removalGuards are those against an odd listing of instances and against an odd directory.
type removalGuards struct {
	routes, users, orders removalGuard
	empty                 bool // the first read has found nothing at all
	told                  bool // the provider has been told all routes
}

// removalGuard holds back the removal of most routes at once until a second read says the same: an engine that comes up,
// or an identity provider that has lost its users, may say for a moment that there is nothing.
type removalGuard struct{ last map[string]bool }

func (g *removalGuard) allows(gone map[string]bool, total int) bool {
	odd := len(gone) > 10 && len(gone)*5 > total
	confirmed := maps.Equal(gone, g.last)
	g.last = maps.Clone(gone)
	return !odd || confirmed
}

// reconcile reads one webspace and makes its port forwards and its route agree with it. The work does not grow with the number of webspaces.
func (m *Manager) reconcile(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	defer m.tellProblem(name)
	if m.index.stale(name) {
		if _, err := m.refresh(ctx, name); err != nil && !errors.Is(err, errNobody) {
			return err
		}
	}
	m.updatePorts(name)
	err := m.updateRoute(ctx, name)
	// After the route: that people get in counts for more than with which certificate.
	certified, orders := m.updateCertificates(ctx, name)
	if certified && err == nil {
		err = m.updateRoute(ctx, name)
	}
	if err := errors.Join(err, orders); err != nil {
		return err
	}
	if _, _, ok := m.unprobed(name); ok {
		m.probes.add(name)
	}
	return m.rememberUsername(ctx, name)
}

// unprobed reports whether the route of a webspace depends on whether it is ready, which nobody knows, and what to probe.
func (m *Manager) unprobed(name string) (e *entry, at netip.AddrPort, ok bool) {
	if e = m.index.find(name); e == nil || m.opts.Provider == nil || m.opts.Mode != Direct {
		return nil, at, false
	}
	v := m.index.look(e)
	port := v.record.Config.HTTPPort
	ok = v.routable() && !v.detour && v.status == StatusRunning && v.address.IsValid() && e.activation.readiness(port) == unknown
	return e, netip.AddrPortFrom(v.address, uint16(port)), ok
}

// probe finds out whether a running webspace is ready, for the sake of its route.
func (m *Manager) probe(ctx context.Context, name string) {
	e, at, ok := m.unprobed(name)
	if !ok {
		return
	}
	err := m.awaitReady(ctx, e, at, false)
	m.log.Debug("probed", "webspace", name, "error", err)
	m.tellFailure(name, err)
	m.queue.add(name)
}
