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

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
)

// NoticeKind says what a [Notice] is about.
type NoticeKind string

// The kinds of notices. A boot goes from queued to ready or failed, and may begin anew when the instance stops meanwhile.
// What runs already is only probed.
const (
	NoticeQueued   NoticeKind = "queued"   // it waits for a turn to start
	NoticeStarting NoticeKind = "starting" // its instance is being started
	NoticeAddress  NoticeKind = "address"  // its instance runs and has an address
	NoticeProbing  NoticeKind = "probing"  // a port of it does not take connections yet
	NoticeReady    NoticeKind = "ready"    // the port does
	NoticeFailed   NoticeKind = "failed"   // it could not be started, or the port takes none; the message says why

	NoticeStopping NoticeKind = "stopping"
	NoticeStopped  NoticeKind = "stopped"
	NoticeConfig   NoticeKind = "config"  // options were changed
	NoticeDomains  NoticeKind = "domains" // its host names were changed
	NoticePorts    NoticeKind = "ports"   // its port forwards were changed
	NoticeRoute    NoticeKind = "route"   // its route was changed
	NoticeProblem  NoticeKind = "problem" // what Summary.Problem says has changed, to the message; empty: there is none any more
	NoticeDeleted  NoticeKind = "deleted" // the last one
)

// Notice tells the followers of a webspace that something has happened to it.
type Notice struct {
	Time    time.Time
	Kind    NoticeKind
	Message string // for people, but for that of NoticeProblem
}

// Follow calls notify, one at a time, with what happens to a webspace until ctx ends, or the webspace is deleted: then it
// returns NotFound, as it does if there is none. The first notices say how things stand. Nothing waits for notify: while
// it takes its time, the last 64 notices are kept for it, and older ones are lost. Notices are to be shown; what has to
// be known for certain has to be read.
func (m *Manager) Follow(ctx context.Context, id identity.UserID, notify func(Notice)) error {
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	name := instanceName(m.opts.Prefix, id)
	f, leave := m.index.followers.join(name)
	defer leave()
	if _, _, err := m.read(ctx, id); err != nil {
		return err
	}
	e := m.known(ctx, name)
	if e == nil {
		return m.wrap(id, errNobody)
	}
	if standing, ok := m.standing(e); ok {
		f.begin(standing)
	}
	m.reroute(name) // the reconciler tells of a problem
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, n := range f.take() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			notify(n)
			if n.Kind == NoticeDeleted {
				return m.wrap(id, errNobody)
			}
		}
	}
}

// standing returns the notice that says what a webspace does.
func (m *Manager) standing(e *entry) (Notice, bool) {
	v := m.index.look(e)
	if port := v.record.Config.HTTPPort; v.status == StatusRunning && e.activation.readiness(port) == accepting {
		return newNotice(NoticeReady, readyMessage(netip.AddrPortFrom(v.address, uint16(port)))), true
	}
	return v.notice()
}

const (
	queuedMessage   = "It waits for its turn to start."
	startingMessage = "It is starting."
	stoppingMessage = "It is stopping."
)

// notice says what the instance does.
func (v view) notice() (Notice, bool) {
	switch {
	case v.status == StatusStopped:
		return newNotice(NoticeStopped, "It is stopped."), true
	case v.status == StatusStarting:
		return newNotice(NoticeStarting, startingMessage), true
	case v.status == StatusStopping:
		return newNotice(NoticeStopping, stoppingMessage), true
	case v.status == StatusRunning && v.address.IsValid():
		return newNotice(NoticeAddress, fmt.Sprintf("It runs at %v.", v.address)), true
	}
	return Notice{}, false
}

func newNotice(kind NoticeKind, message string) Notice {
	return Notice{Time: time.Now(), Kind: kind, Message: message}
}

func probingMessage(at netip.AddrPort) string {
	return fmt.Sprintf("Waiting for its port %d to take connections.", at.Port())
}

func readyMessage(at netip.AddrPort) string {
	return fmt.Sprintf("Its port %d takes connections.", at.Port())
}

// tell lets the followers of a webspace know. It never waits, and costs next to nothing if there are none.
func (m *Manager) tell(name string, kind NoticeKind, message string) {
	m.index.followers.publish(name, newNotice(kind, message))
}

func (m *Manager) routeMessage(route provider.Route) string {
	switch route.Backend {
	case "":
		return "It has no route any more."
	case m.opts.Gateway, m.opts.TLSGateway:
		return "Requests for it go to the gateway."
	}
	return "Requests for it go straight to its instance."
}

// tellStanding tells what the instance does.
func (m *Manager) tellStanding(e *entry) {
	if n, ok := m.index.look(e).notice(); ok {
		m.index.followers.publish(e.name, n)
	}
}

// tellFailure tells why an activation failed, in words for visitors.
func (m *Manager) tellFailure(name string, err error) {
	if f, ok := errors.AsType[*proxy.Failure](err); ok {
		m.tell(name, NoticeFailed, f.Reason)
	}
}

// tellProblem tells what is wrong with a webspace to those who do not know yet. One call at a time for a webspace.
func (m *Manager) tellProblem(name string) {
	if !m.index.followers.any(name) {
		return
	}
	if e := m.index.find(name); e != nil {
		m.index.followers.publish(name, newNotice(NoticeProblem, m.problem(e)))
	}
}

// tellChanges tells what has changed between two readings of a webspace.
func (f *followers) tellChanges(name string, before, after view) {
	if !before.known || !f.any(name) {
		return
	}
	if n, ok := after.notice(); ok && (before.status != after.status || before.address != after.address && after.status == StatusRunning) {
		f.publish(name, n)
	}
	old, now := before.record, after.record
	if old.Config != now.Config {
		f.publish(name, newNotice(NoticeConfig, "Its configuration was changed."))
	}
	if !slices.Equal(before.hosts, after.hosts) {
		f.publish(name, newNotice(NoticeDomains, "Its host names were changed."))
	}
	if !maps.Equal(old.Ports, now.Ports) {
		f.publish(name, newNotice(NoticePorts, "Its port forwards were changed."))
	}
}

// followers are those who follow webspaces, by instance name. The locks in here are the innermost of all.
type followers struct {
	mu     sync.RWMutex
	byName map[string][]*follower
}

// any reports whether somebody follows a webspace.
func (f *followers) any(name string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.byName[name]) > 0
}

func (f *followers) publish(name string, n Notice) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, w := range f.byName[name] {
		w.add(n)
	}
}

func (f *followers) join(name string) (w *follower, leave func()) {
	w = &follower{wake: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byName == nil {
		f.byName = make(map[string][]*follower)
	}
	f.byName[name] = append(f.byName[name], w)
	return w, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		rest := slices.DeleteFunc(f.byName[name], func(other *follower) bool { return other == w })
		if f.byName[name] = rest; len(rest) == 0 {
			delete(f.byName, name)
		}
	}
}

// maxNotices is how many notices are kept for a follower that is slow to take them.
const maxNotices = 64

// follower is one call of Follow.
type follower struct {
	wake chan struct{} // holds a value when there is something to take

	mu      sync.Mutex
	notices []Notice // not told yet
	latest  Notice   // the last one of what the webspace does, told or not
	problem string   // that was told last
}

// add appends a notice. What is known is left out: several look at a webspace at the same time and find the same.
func (w *follower) add(n Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch n.Kind {
	case NoticeProblem:
		if n.Message == w.problem {
			return
		}
		w.problem = n.Message
	case NoticeConfig, NoticeDomains, NoticePorts, NoticeRoute:
	default:
		if n.Kind == w.latest.Kind && n.Message == w.latest.Message {
			return
		}
		w.latest = n
	}
	if len(w.notices) == maxNotices {
		w.notices = slices.Delete(w.notices, 0, 1)
	}
	w.notices = append(w.notices, n)
	w.signal()
}

// begin puts a notice before all others.
func (w *follower) begin(n Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.notices) == 0 {
		w.latest = n
	}
	w.notices = slices.Insert(w.notices, 0, n)
	w.signal()
}

func (w *follower) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *follower) take() []Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.notices
	w.notices = nil
	return taken
}
