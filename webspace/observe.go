package webspace

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
)

// labels returns the default domains' labels of the instances' users. After as many failures in a row as there are
// look-ups at a time, the directory is taken to be away: waiting for each of them would take longer than anybody has. One
// that has to be told of users waits for nobody.
func (m *Manager) labels(ctx context.Context, instances []Instance) (map[identity.UserID]userLabel, error) {
	const parallel = 16
	labels := make(map[identity.UserID]userLabel, len(instances))
	var mu sync.Mutex
	var wg sync.WaitGroup
	var away userLabel // the last failure
	failures := 0      // in a row
	queue := make(chan Instance)
	for range min(parallel, len(instances)) {
		wg.Go(func() {
			for instance := range queue {
				mu.Lock()
				label, known := away, failures >= parallel && m.learner == nil
				mu.Unlock()
				user, _ := instanceUser(m.opts.Prefix, instance.Name)
				if !known {
					label = m.lookUp(ctx, user, instance)
				}
				mu.Lock()
				labels[user] = label
				if failures++; label.failed == nil {
					failures = 0
				} else {
					away = label
				}
				mu.Unlock()
			}
		})
	}
	for _, instance := range instances {
		if _, ok := instanceUser(m.opts.Prefix, instance.Name); ok {
			queue <- instance
		}
	}
	close(queue)
	wg.Wait()
	return labels, ctx.Err()
}

// userLabel is the answer to a look-up of a user.
type userLabel struct {
	username string
	label    string
	problem  string // why there is none
	failed   error  // the user could not be looked up; nothing is known
}

// lookUp asks the directory for the user of an instance.
func (m *Manager) lookUp(ctx context.Context, id identity.UserID, instance Instance) userLabel {
	if m.learner != nil {
		if r, err := decodeRecord(instance.Record, instance.Name, id, m.opts.Defaults); err == nil && r.Username != "" {
			m.learner.Learn(id, r.Username)
		}
	}
	user, err := m.directory.ByID(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return userLabel{problem: fmt.Sprintf("there is no user %d", id)}
	case err != nil:
		return userLabel{failed: fmt.Errorf("look up user %d: %w", id, err)}
	}
	label, err := Label(user.Username)
	if err != nil {
		return userLabel{username: user.Username, problem: err.Error()}
	}
	return userLabel{username: user.Username, label: label}
}

// observe takes in an instance that was read after the given point of the index's history. If its user could not be
// looked up, the default domain stays what it was, or what follows from the record, or what it is in the route that stands.
func (m *Manager) observe(instance Instance, user identity.UserID, label userLabel, since uint64) (affected []string, ok bool) {
	r, bad := decodeRecord(instance.Record, instance.Name, user, m.opts.Defaults)
	if label.failed != nil {
		var err error
		if label.label, err = Label(r.Username); err != nil {
			label.label = m.storedLabel(instance.Name)
		}
	}
	return m.index.update(instance.Name, user, since, func(v *view) {
		if label.failed != nil && v.label != "" {
			label.label, label.username = v.label, v.username
		}
		next := view{
			known: true, status: instance.Status, address: instance.Address,
			record: r, bad: bad, username: label.username, label: label.label, detour: v.detour, deleting: v.deleting,
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
		if r.Config.SNIPassthrough && m.opts.TLSGateway == "" {
			next.problems = append(next.problems, "sniPassthrough: this server does not pass TLS through")
		}
		*v = next
	})
}

// rememberUsername writes a user's name into the record if it has changed.
func (m *Manager) rememberUsername(ctx context.Context, name string) error {
	e, username := m.unremembered(name)
	if e == nil {
		return nil
	}
	err := m.modify(ctx, e.user, func(r *record) error {
		r.Username = username
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// unremembered returns the entry of a webspace whose record has another name of its user than the directory; nil if there
// is none. A record without any is as good, unless the directory will have to be told: after a restart it knows nobody.
func (m *Manager) unremembered(name string) (e *entry, username string) {
	if e = m.index.find(name); e == nil {
		return nil, ""
	}
	v := m.index.look(e)
	if m.learner == nil && v.record.Username == "" || !v.known || v.bad != nil || v.record.Creating || v.deleting || v.username == "" || v.username == v.record.Username {
		return nil, ""
	}
	return e, v.username
}

// storedLabel returns the label of the default domain that the route of a webspace, as it stands, is for.
func (m *Manager) storedLabel(name string) string {
	route, _ := m.routes.get(name)
	for _, host := range route.Hosts {
		if label, ok := strings.CutSuffix(host.String(), "."+m.zone); ok && provider.IsLabel(label) {
			return label
		}
	}
	return ""
}

// refresh reads one instance and returns what is known of its webspace. NotFound if it is gone.
func (m *Manager) refresh(ctx context.Context, name string) (view, error) {
	user, ok := instanceUser(m.opts.Prefix, name)
	if !ok {
		return view{}, errNobody
	}
	unlock, err := m.reads.Lock(ctx, name)
	if err != nil {
		return view{}, err
	}
	defer unlock()
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
		if e := m.index.find(name); e != nil {
			v := m.index.look(e)
			label.label, label.username = v.label, v.username // a change of the username is a matter of the full sync
		}
		if label.label == "" {
			label = m.lookUp(ctx, user, instance)
		}
		affected, ok := m.observe(instance, user, label, since)
		if !ok {
			continue // something changed while we read; what we have may be older
		}
		m.reroute(affected...)
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
	m.updatePorts(name)
	m.reroute(affected...)
}
