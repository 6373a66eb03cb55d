package webspace

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/proxy"
)

// PortForwarder opens external ports and forwards what connects to targets. A [proxy.Forwarder] is one. Its methods do not
// wait for anybody, and are safe for concurrent use.
type PortForwarder interface {
	// Forward makes connections to a port go to t, until it is told otherwise. It goes on trying to open the port.
	Forward(port int, t proxy.Target)
	// Unforward closes a port, if it is forwarded, and ends its connections.
	Unforward(port int)
	// Status returns nil if a port is open, and else why it is not; NotFound if it is not forwarded.
	Status(port int) error
}

// forwards are what the PortForwarder was last asked for.
type forwards struct {
	mu     sync.Mutex                      // held while it is asked
	byName map[string]map[int]proxy.Target // by webspace and the external ports that it claimed; zero: not forwarded
}

// updatePorts makes the forwards of all ports that a webspace claims, or did before, agree with what is known. Whose they
// are is decided anew for each, so that it does not matter who comes first when a port changes hands.
func (m *Manager) updatePorts(name string) {
	if m.forwarder == nil {
		return
	}
	m.forwards.mu.Lock()
	defer m.forwards.mu.Unlock()
	for port := range m.forwards.byName[name] {
		m.updatePort(port)
	}
	desired := m.desiredForwards(name)
	for port := range desired {
		m.updatePort(port)
	}
	if len(desired) > 0 {
		m.forwards.byName[name] = desired
	} else {
		delete(m.forwards.byName, name)
	}
}

func (m *Manager) updatePort(port int) {
	if target := m.desiredForward(port); target != (proxy.Target{}) {
		m.forwarder.Forward(port, target)
	} else {
		m.forwarder.Unforward(port)
	}
}

// unforwarded reports whether the forwards of a webspace's ports are other than they should be.
func (m *Manager) unforwarded(name string) bool {
	if m.forwarder == nil {
		return false
	}
	m.forwards.mu.Lock()
	defer m.forwards.mu.Unlock()
	return !maps.Equal(m.forwards.byName[name], m.desiredForwards(name))
}

// desiredForwards returns where the external ports that a webspace claims should go.
func (m *Manager) desiredForwards(name string) map[int]proxy.Target {
	e := m.index.find(name)
	if e == nil {
		return nil
	}
	desired := make(map[int]proxy.Target)
	for port := range m.index.look(e).record.Ports {
		desired[port] = m.desiredForward(port)
	}
	return desired
}

// desiredForward returns where an external port should go; zero: nowhere. A record may name a port that members can not
// have: this host's own.
func (m *Manager) desiredForward(port int) proxy.Target {
	if !m.opts.Ports.allows(port) {
		return proxy.Target{}
	}
	return m.index.targetOf(port)
}

// targetOf returns where its owner wants an external port to go; zero: nowhere.
func (x *index) targetOf(port int) proxy.Target {
	x.mu.RLock()
	defer x.mu.RUnlock()
	line := x.ports[port]
	if len(line) == 0 || !line[0].routable() {
		return proxy.Target{}
	}
	return proxy.Target{Webspace: line[0].name, Port: line[0].record.Ports[port]}
}

// portProblems says which port forwards of a webspace do not work.
func (m *Manager) portProblems(e *entry) (problems []string) {
	v := m.index.look(e)
	if m.forwarder == nil || !v.routable() {
		return nil
	}
	for _, port := range slices.Sorted(maps.Keys(v.record.Ports)) {
		err := m.forwarder.Status(port)
		switch {
		case !m.opts.Ports.allows(port):
			problems = append(problems, fmt.Sprintf("port %d is not between %d and %d", port, m.opts.Ports.First, m.opts.Ports.Last))
		case m.index.targetOf(port).Webspace != e.name:
			problems = append(problems, fmt.Sprintf("port %d belongs to another webspace", port))
		case err != nil && !errdefs.IsNotFound(err): // else it is about to be opened
			problems = append(problems, fmt.Sprintf("port %d could not be opened: %v", port, err))
		}
	}
	return problems
}

func (r PortRange) allows(port int) bool { return r.First <= port && port <= r.Last }
