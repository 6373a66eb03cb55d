package webspace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
)

// workers is how many webspaces are reconciled at a time.
const workers = 8

// Run keeps routes in agreement with the webspaces until ctx ends, which is its only way to return. Webspaces and routes
// stay as they are then. Events of the runtime only say which webspace to look at; what counts is what is read, for each
// webspace after an event and for all of them now and then, so that lost, doubled and reordered events do no harm.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.watch(ctx) })
	for range workers {
		wg.Go(func() {
			for {
				name, err := m.queue.next(ctx)
				if err != nil {
					return
				}
				err = m.reconcile(ctx, name)
				if err != nil && ctx.Err() == nil {
					m.log.Warn("reconciliation failed", "webspace", name, "error", err)
				}
				m.queue.done(name, err != nil)
			}
		})
	}
	m.resyncLoop(ctx)
	return ctx.Err()
}

// Sync reads a webspace anew and makes its route agree with it.
func (m *Manager) Sync(ctx context.Context, id identity.UserID) error {
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	if _, _, err := m.read(ctx, id); err != nil {
		return err
	}
	name := instanceName(m.opts.Prefix, id)
	m.index.adjust(name, func(v *view) { v.fresh = false })
	return m.reconcile(ctx, name)
}

// dirty marks a webspace for reconciliation.
func (m *Manager) dirty(names ...string) {
	for _, name := range names {
		m.index.touch(name)
		m.queue.add(name)
	}
}

// watch follows the runtime's events, and opens the stream again whenever it is lost.
func (m *Manager) watch(ctx context.Context) {
	watcher, ok := m.runtime.(Watcher)
	if !ok {
		return
	}
	const longest = 30 * time.Second
	for wait := time.Second; ; wait = min(2*wait, longest) {
		opened := time.Now()
		err := watcher.Watch(ctx, func(event Event) {
			if event.Instance == "" {
				m.requestResync()
			} else if _, ok := instanceUser(m.opts.Prefix, event.Instance); ok {
				m.dirty(event.Instance)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(opened) > longest {
			wait = time.Second
		}
		m.log.Warn("lost the runtime's events", "error", err, "retry_in", wait)
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
	var guard removalGuard
	for failures := 0; ; {
		next := m.opts.Resync
		again, err := m.sync(ctx, &guard)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next = min(time.Second<<min(failures, 5), 30*time.Second, m.opts.Resync)
			failures++
			m.log.Error("the webspaces could not be read; routes stay as they are", "error", err, "retry_in", next)
		case again:
			next = min(time.Second, m.opts.Resync)
			failures = 0
		default:
			failures = 0
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-m.resync:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// sync reads all webspaces and all routes, and queues the webspaces whose routes differ. again asks for another one soon.
func (m *Manager) sync(ctx context.Context, guard *removalGuard) (again bool, err error) {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	since, routesSince := m.index.now(), m.routes.now()
	instances, err := m.runtime.List(ctx, m.opts.Prefix)
	if err != nil {
		return false, fmt.Errorf("list instances: %w", err)
	}
	var stored []provider.Route
	if m.opts.Provider != nil {
		if stored, err = m.opts.Provider.Routes(ctx); err != nil {
			return false, fmt.Errorf("read routes: %w", err)
		}
	}
	labels, err := m.labels(ctx, instances)
	if err != nil {
		return false, err
	}

	listed := make(map[string]bool, len(instances))
	dirty := make(map[string]bool)
	for _, instance := range instances {
		user, ok := instanceUser(m.opts.Prefix, instance.Name)
		if !ok {
			continue
		}
		listed[instance.Name] = true
		affected, ok := m.observe(instance, user, labels[user], since, true)
		if !ok {
			dirty[instance.Name] = true // it changed meanwhile, so read it again
		}
		for _, name := range affected {
			dirty[name] = true
		}
	}

	m.routes.replace(stored, routesSince)

	desired := make([]provider.Route, 0, len(listed))
	for name := range listed {
		current, _ := m.routes.get(name)
		if route, ok := m.desired(name, current.Backend); ok {
			desired = append(desired, route)
		}
		m.probeUnknown(name)
	}
	gone := make(map[string]bool)
	for _, e := range m.index.all() {
		if !listed[e.name] {
			gone[e.name] = true
		}
	}
	if m.opts.Provider != nil {
		changes := provider.Plan(desired, m.routes.all())
		for _, route := range changes.Put {
			dirty[route.Name] = true
		}
		for _, name := range changes.Delete {
			gone[name] = true
		}
	}
	again = !guard.allows(gone, len(listed)+len(gone))
	if again {
		m.log.Warn("most webspaces seem to be gone; looking again before their routes are removed", "gone", len(gone), "left", len(listed))
		clear(gone)
	}
	maps.Copy(dirty, gone)
	for name := range dirty {
		m.queue.add(name)
	}
	select {
	case <-m.synced:
	default:
		close(m.synced)
		m.log.Info("read all webspaces", "webspaces", len(listed), "routes", len(stored), "to_change", len(dirty), "took", time.Since(started).Round(time.Millisecond))
	}
	return again, nil
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

// labels returns the default domains' labels of the instances' users. Of users that cannot be looked up now, what was
// known before stays.
func (m *Manager) labels(ctx context.Context, instances []Instance) (map[identity.UserID]userLabel, error) {
	labels := make(map[identity.UserID]userLabel, len(instances))
	var mu sync.Mutex
	var wg sync.WaitGroup
	users := make(chan identity.UserID)
	for range min(16, len(instances)) {
		wg.Go(func() {
			for user := range users {
				label := m.lookUp(ctx, user)
				mu.Lock()
				labels[user] = label
				mu.Unlock()
			}
		})
	}
	for _, instance := range instances {
		if user, ok := instanceUser(m.opts.Prefix, instance.Name); ok {
			users <- user
		}
	}
	close(users)
	wg.Wait()
	return labels, ctx.Err()
}

// userLabel is the answer to a look-up of a user.
type userLabel struct {
	label   string
	problem string // why there is none
	failed  error  // the user could not be looked up; nothing is known
}

func (m *Manager) lookUp(ctx context.Context, id identity.UserID) userLabel {
	user, err := m.directory.ByID(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return userLabel{problem: fmt.Sprintf("there is no user %d", id)}
	case err != nil:
		return userLabel{failed: fmt.Errorf("look up user %d: %w", id, err)}
	}
	label, err := Label(user.Username)
	if err != nil {
		return userLabel{problem: err.Error()}
	}
	return userLabel{label: label}
}

// observe takes in an instance that was read after the given point of the index's history.
func (m *Manager) observe(instance Instance, user identity.UserID, label userLabel, since uint64, fresh bool) (affected []string, ok bool) {
	r, bad := decodeRecord(instance.Record, instance.Name, user, m.opts.Defaults)
	return m.index.update(instance.Name, user, since, func(v *view) {
		var unsure error
		if label.failed != nil {
			if label.label = v.label; label.label == "" {
				unsure = label.failed
			}
		}
		next := view{
			known: true, fresh: fresh, status: instance.Status, address: instance.Address,
			record: r, bad: bad, unsure: unsure, label: label.label, detour: v.detour, deleting: v.deleting,
		}
		if bad == nil {
			next.hosts = m.hosts(label.label, r)
			for _, domain := range r.Domains {
				if _, err := parseDomain(domain, m.zone); err != nil {
					next.problems = append(next.problems, err.Error())
				}
			}
		}
		if label.problem != "" {
			next.problems = append(next.problems, label.problem)
		}
		if label.failed != nil {
			next.problems = append(next.problems, label.failed.Error())
		}
		if r.Config.SNIPassthrough {
			next.problems = append(next.problems, "sniPassthrough: this server does not pass TLS through")
		}
		*v = next
	})
}

// refresh reads one instance and returns what is known of its webspace. NotFound if it is gone.
func (m *Manager) refresh(ctx context.Context, name string) (view, error) {
	user, ok := instanceUser(m.opts.Prefix, name)
	if !ok {
		return view{}, errNobody
	}
	for {
		since := m.index.now()
		instance, err := m.runtime.Get(ctx, name)
		if errdefs.IsNotFound(err) {
			m.forget(name, since)
			return view{}, errNobody
		}
		if err != nil {
			return view{}, err
		}
		var label userLabel
		if e := m.index.find(name); e != nil && m.index.look(e).known {
			v := m.index.look(e)
			label.label = v.label
			if v.label == "" {
				label = m.lookUp(ctx, user)
			}
		} else {
			label = m.lookUp(ctx, user)
		}
		affected, ok := m.observe(instance, user, label, since, false)
		if !ok {
			continue // something changed while we read; what we have may be older
		}
		m.dirty(affected...)
		if e := m.index.find(name); e != nil {
			return m.index.look(e), nil
		}
	}
}

// forget drops what is known of a webspace that is gone.
func (m *Manager) forget(name string, since uint64) {
	affected, ok := m.index.remove(name, since)
	if !ok {
		m.dirty(name)
		return
	}
	m.dirty(affected...)
}

// reconcile reads one webspace and makes its route agree with it. The work does not grow with the number of webspaces.
func (m *Manager) reconcile(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if !m.index.takeFresh(name) {
		if _, err := m.refresh(ctx, name); err != nil && !errors.Is(err, errNobody) {
			return err
		}
	}
	if err := m.updateRoute(ctx, name); err != nil {
		return err
	}
	m.probeUnknown(name)
	return nil
}

// probeUnknown finds out whether a running webspace is ready, if routes depend on it. The answer marks it dirty.
func (m *Manager) probeUnknown(name string) {
	if m.opts.Provider == nil || m.opts.Mode != Direct {
		return
	}
	e := m.index.find(name)
	if e == nil {
		return
	}
	v := m.index.look(e)
	port := v.record.Config.HTTPPort
	if !v.routable() || v.detour || v.status != StatusRunning || !v.address.IsValid() || e.activation.readiness(port) != unknown {
		return
	}
	t := proxy.Target{Webspace: name, Port: port}
	_, _ = m.activations.join(flightKey{t, true}, func(ctx context.Context) (struct{}, error) {
		err := m.awaitReady(ctx, e, netip.AddrPortFrom(v.address, uint16(port)), false)
		m.log.Debug("probed", "webspace", name, "port", port, "error", err)
		return struct{}{}, err
	}) // fails when the manager is closed, which is fine
}
