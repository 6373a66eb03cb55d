package webspace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/proxy"
)

var (
	_ proxy.Router    = (*Manager)(nil)
	_ proxy.TLSRouter = (*Manager)(nil)
	_ proxy.Activator = (*Manager)(nil)
	_ proxy.Runner    = (*Manager)(nil)
)

// activation is the part of a webspace's entry that the data path works on.
type activation struct {
	mu       sync.Mutex
	endpoint netip.Addr        // the address while the instance runs, else zero
	since    time.Time         // since when it may be booting there
	ports    map[int]readiness // what is known of the ports there
	changed  chan struct{}     // closed and replaced when any of these change

	waiting int           // callers of Activate
	served  chan struct{} // closed when waiting falls to zero; nil if nobody wants to know

	leases   int
	draining bool          // no endpoint is handed out: the instance is about to stop
	idle     chan struct{} // closed when draining and without leases

	bootedAt time.Time // when the last boot was over, until somebody is served by it; kept for the Observer alone

	halts    int       // how often we stopped it ourselves
	born     time.Time // when it came up at endpoint
	ready    bool      // something has answered there
	failures int       // boots that failed in a row
	short    int       // short lives in a row, see endLife
	retryAt  time.Time
	lastErr  error
}

type readiness int

const (
	unknown readiness = iota
	accepting
	silent
)

func (a *activation) init() {
	a.ports = make(map[int]readiness)
	a.changed = make(chan struct{})
}

func (a *activation) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// observe takes in what was read of the instance.
func (a *activation) observe(status Status, address netip.Addr) {
	if status != StatusRunning {
		address = netip.Addr{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.endpoint == address {
		return
	}
	now := time.Now()
	if a.ready && !address.IsValid() {
		a.endLife(now)
	}
	if !a.endpoint.IsValid() {
		a.born = now
	}
	a.endpoint, a.since, a.ready = address, now, false
	clear(a.ports)
	a.wake()
}

func (a *activation) readiness(port int) readiness {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ports[port]
}

// setReadiness notes the result of a probe, unless the instance is no longer where it was probed.
func (a *activation) setReadiness(at netip.AddrPort, r readiness) (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	port := int(at.Port())
	if a.endpoint != at.Addr() || a.ports[port] == r {
		return false
	}
	if len(a.ports) >= 256 {
		clear(a.ports) // a bound; forgetting costs a probe
	}
	a.ports[port] = r
	if r == accepting {
		a.ready, a.failures, a.retryAt, a.lastErr = true, 0, time.Time{}, nil
	}
	return true
}

// Route implements [proxy.Router].
func (m *Manager) Route(host string) (proxy.Target, error) {
	target, passthrough, err := m.route(host)
	if err == nil && passthrough {
		return proxy.Target{}, errPassthrough
	}
	return target, err
}

// RouteTLS implements [proxy.TLSRouter].
func (m *Manager) RouteTLS(serverName string) (proxy.Target, error) {
	target, passthrough, err := m.route(serverName)
	if err == nil && !passthrough {
		return proxy.Target{}, errTerminated
	}
	return target, err
}

// route returns what serves a host name, and whether that takes TLS itself.
func (m *Manager) route(host string) (target proxy.Target, passthrough bool, err error) {
	if len(host) > 254 {
		return proxy.Target{}, false, errNobody
	}
	e := m.index.ownerOf(asciiLower(strings.TrimSuffix(host, ".")))
	if e == nil {
		if !m.isSynced() {
			return proxy.Target{}, false, errUnread
		}
		return proxy.Target{}, false, errNobody
	}
	v := m.index.look(e)
	if !v.routable() {
		return proxy.Target{}, false, errNobody
	}
	config := v.record.Config
	return proxy.Target{Webspace: e.name, Port: config.HTTPPort}, config.SNIPassthrough, nil
}

var (
	errNobody      = fmt.Errorf("no webspace has this host name: %w", errdefs.ErrNotFound)
	errPassthrough = fmt.Errorf("this webspace takes TLS itself: %w", errdefs.ErrFailedPrecondition)
	errTerminated  = fmt.Errorf("this webspace does not take TLS itself: %w", errdefs.ErrFailedPrecondition)
	errUnread      = &proxy.Failure{
		Reason: "The server has just started.", RetryAfter: time.Second,
		Err: fmt.Errorf("the webspaces have not been read yet: %w", errdefs.ErrUnavailable),
	}
)

// Ready implements [proxy.Activator].
func (m *Manager) Ready(t proxy.Target) (proxy.Endpoint, bool) {
	e := m.index.find(t.Webspace)
	if e == nil {
		return proxy.Endpoint{}, false
	}
	a := &e.activation
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.draining || !a.endpoint.IsValid() || a.ports[t.Port] != accepting {
		return proxy.Endpoint{}, false
	}
	a.leases++
	at := netip.AddrPortFrom(a.endpoint, uint16(t.Port))
	var once sync.Once
	return proxy.Endpoint{Address: at, FirstByte: m.firstByte(a), Release: func(err error) {
		once.Do(func() { m.release(e, at, err) })
	}}, true
}

func (m *Manager) release(e *entry, at netip.AddrPort, err error) {
	a := &e.activation
	// Whatever the reason, the next activation probes again, and the reconciler has a look.
	lost := err != nil && a.setReadiness(at, silent)
	if lost {
		m.dirty(e.name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if lost {
		// What answered until now may have been restarted, from inside say, and then deserves the time of a boot.
		a.since = time.Now()
	}
	a.leases--
	if a.leases == 0 && a.draining {
		close(a.idle)
	}
}

// Runs implements [proxy.Runner].
func (m *Manager) Runs(webspace string) bool {
	e := m.index.find(webspace)
	if e == nil {
		return false
	}
	e.activation.mu.Lock()
	defer e.activation.mu.Unlock()
	return e.activation.backsOff() || m.index.look(e).runs()
}

// Activate implements [proxy.Activator]: it boots the webspace if need be and waits until the port takes connections.
func (m *Manager) Activate(ctx context.Context, t proxy.Target) (proxy.Endpoint, error) {
	if !validPort(t.Port) {
		return proxy.Endpoint{}, invalid("port %d is not between 1 and 65535", t.Port)
	}
	if e := m.index.find(t.Webspace); e != nil {
		defer e.activation.wait()()
	}
	for {
		if endpoint, ok := m.Ready(t); ok {
			return endpoint, nil
		}
		// Between the end of a flight and the lease, the instance may be gone again: then there is another flight.
		if _, err := m.activations.do(ctx, t, func(ctx context.Context) (struct{}, error) {
			ctx, cancel := context.WithTimeout(ctx, m.opts.StartTimeout+m.opts.AddressTimeout+m.opts.StopGrace+m.opts.MaxStartupDelay)
			defer cancel()
			err := m.activate(ctx, t)
			if err == nil {
				return struct{}{}, nil
			}
			if errors.Is(err, errAbandoned) {
				return struct{}{}, err
			}
			m.log.Warn("activation failed", "webspace", t.Webspace, "port", t.Port, "error", err)
			// What was read on the way may differ from what the route was made of, and the event may be lost.
			m.dirty(t.Webspace)
			if _, ok := errors.AsType[*proxy.Failure](err); !ok && ctx.Err() != nil {
				// It is the flight that has run out of time or was ended, not whoever waits for it.
				err = &proxy.Failure{
					Reason: "This webspace could not be started in time.", RetryAfter: 5 * time.Second,
					Err: fmt.Errorf("activation ended: %v: %w", err, errdefs.ErrUnavailable),
				}
			}
			m.tellFailure(t.Webspace, err)
			return struct{}{}, err
		}); errors.Is(err, errAbandoned) && ctx.Err() == nil {
			continue // it ended just before this caller came
		} else if err != nil {
			return proxy.Endpoint{}, err
		}
	}
}

// wait counts a caller of Activate until the returned function is called.
func (a *activation) wait() (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.waiting--; a.waiting == 0 && a.served != nil {
			close(a.served)
			a.served = nil
		}
	}
}

// nobodyWaits returns a channel that is closed as soon as nobody waits.
func (a *activation) nobodyWaits() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting == 0 {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	if a.served == nil {
		a.served = make(chan struct{})
	}
	return a.served
}

// awaitServed gives those who wait for the webspace to boot a moment to get in, before it is stopped under their feet. A
// member whose scripts start and stop all the time would else keep visitors waiting for ever.
func (m *Manager) awaitServed(ctx context.Context, e *entry) error {
	return m.awaitDrain(ctx, e.activation.nobodyWaits())
}

// awaitDrain waits until done is closed, but no longer than a stop may be kept waiting.
func (m *Manager) awaitDrain(ctx context.Context, done <-chan struct{}) error {
	timer := time.NewTimer(m.opts.Drain)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// drain keeps new requests away from an instance that is about to stop, and waits a moment for those under way. They
// are held until undrain, and then boot it again.
func (m *Manager) drain(ctx context.Context, e *entry) error {
	a := &e.activation
	a.mu.Lock()
	a.draining = true
	a.halts++
	a.idle = make(chan struct{})
	if a.leases == 0 {
		close(a.idle)
	}
	idle := a.idle
	a.mu.Unlock()
	return m.awaitDrain(ctx, idle)
}

func (e *entry) undrain() {
	a := &e.activation
	a.mu.Lock()
	defer a.mu.Unlock()
	a.draining = false
	clear(a.ports) // whatever answers there now has to be probed anew, and may just have been started
	a.since = time.Now()
	a.wake()
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
