package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// ForwarderOptions are what may differ between forwarders. The zero value of each is its default.
type ForwarderOptions struct {
	// ListenAddress is where ports are opened: on all addresses of this host.
	ListenAddress netip.Addr
	// Holds bound the connections that wait; share them with everything else that holds. Default: new ones.
	Holds *Holds
	// HoldTimeout is the longest time that a connection waits for its target: 50 seconds.
	HoldTimeout time.Duration
	// Limits bound all connections, held or not: 1024 to one webspace, 64 from one source, and [MaxConns] in total. Their
	// wakes mean nothing; those of Holds count.
	Limits HoldLimits
	// IdleTimeout ends a connection on which nothing has come from either side for that long: 1 hour. It takes Linux.
	IdleTimeout time.Duration
	// Shared has the ports opened as [Listen] does, so that a successor can take them over: see [Forwarder.Yield].
	Shared bool
	// Replaces has ports opened that another process of this user shares, which is the one to take over from. Without it
	// they count as taken: it may be somebody else's daemon.
	Replaces bool
	// TrustedProxies are the addresses of balancers in front, which begin each connection with a PROXY header; see
	// [ProxyProtocol].
	TrustedProxies []netip.Prefix
	// ProxyProtocol makes each connection to a target begin with a PROXY header, version 2, that says who the client is.
	// Whatever listens there must expect it.
	ProxyProtocol bool
	// Logger gets a debug record for each connection that failed, and a warning where the cause is neither the client
	// nor the target. Default: nothing is logged.
	Logger *slog.Logger
}

// Forwarder forwards TCP ports of this host to targets. A connection to a target that takes none yet is held while it
// boots. Nothing is read from it meanwhile, and afterwards the kernel moves its bytes (splice(2), on Linux).
//
// A client that is not served, because its target can not be reached or there are too many, gets a reset, as does
// whoever is cut off: neither can be taken for an end. Connecting alone boots nothing: a connection has to live for a
// moment, or to send something.
//
// Create it with [NewForwarder] and end it with [Forwarder.Shutdown]. It is safe for concurrent use.
type Forwarder struct {
	*carrier // its running are ports and connections
	opts     ForwarderOptions

	mu     sync.Mutex
	closed bool
	ports  map[int]*forward
}

// ForwarderStats count what a forwarder has done since it was made.
type ForwarderStats struct {
	TCPStats
	Forwards int // port forwards now
	Unopened int // those of them whose port could not be opened yet
}

// NewForwarder returns a forwarder without any port. nil options are the defaults.
func NewForwarder(activator Activator, opts *ForwarderOptions) *Forwarder {
	f := &Forwarder{ports: map[int]*forward{}}
	if opts != nil {
		f.opts = *opts
	}
	f.carrier = newCarrier(&carrier{
		activator: activator, holds: f.opts.Holds, holdTimeout: f.opts.HoldTimeout, idleTimeout: f.opts.IdleTimeout,
		proxyProtocol: f.opts.ProxyProtocol, log: f.opts.Logger,
	}, f.opts.Limits)
	return f
}

// Forward makes connections to a port go to t. If they went to another target, those there are end, and the port stays
// open. A port that can not be opened, because another program has it, is tried again until Unforward; [Forwarder.Status]
// says so. After Shutdown nothing happens.
func (f *Forwarder) Forward(port int, t Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	if w := f.ports[port]; w != nil {
		if w.target != t {
			w.leave(errUnforwarded)
			w.aim(f.ctx, t)
		}
		return
	}
	w := newForward(f, port)
	w.aim(f.ctx, t)
	f.ports[port] = w
	w.listener, w.err = f.listen(w)
	listener, err := w.listener, w.err
	f.running.Go(func() { w.run(listener, err) })
}

// Unforward closes a port and ends its connections. It does nothing for a port that is not forwarded.
func (f *Forwarder) Unforward(port int) {
	f.mu.Lock()
	w := f.ports[port]
	if w == nil {
		f.mu.Unlock()
		return
	}
	delete(f.ports, port)
	w.close()
	w.leave(errUnforwarded)
	f.mu.Unlock()
	<-w.ended // the port is free only then
}

// Status returns nil if a port is open, and else why it is not: NotFound if it is not forwarded.
func (f *Forwarder) Status(port int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.ports[port]; w != nil {
		return w.err
	}
	return fmt.Errorf("port %d is not forwarded: %w", port, errdefs.ErrNotFound)
}

// Stats returns the counters.
func (f *Forwarder) Stats() ForwarderStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := ForwarderStats{TCPStats: f.tcpStats(), Forwards: len(f.ports)}
	for _, w := range f.ports {
		if w.err != nil {
			stats.Unopened++
		}
	}
	return stats
}

// Shutdown closes the ports, then waits for the connections that are under way, held ones among them. When ctx ends before
// they do, they are cut off, and the error is ctx's. Either way nothing of the forwarder runs any more when it returns,
// unless the Activator does not return. It may be called again.
func (f *Forwarder) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	for port, w := range f.ports {
		delete(f.ports, port)
		w.close()
	}
	f.mu.Unlock()
	return f.drain(ctx, errForwarderClosed)
}

func (f *Forwarder) listen(w *forward) (net.Listener, error) {
	host := ""
	if f.opts.ListenAddress.IsValid() {
		host = f.opts.ListenAddress.String()
	}
	l, err := f.listenAt(w.ctx, net.JoinHostPort(host, strconv.Itoa(w.port)))
	if err == nil && len(f.opts.TrustedProxies) > 0 {
		l = ProxyProtocol(l, f.opts.TrustedProxies)
	}
	return l, err
}

func (f *Forwarder) listenAt(ctx context.Context, address string) (net.Listener, error) {
	if f.opts.Shared {
		if shared, err := CheckListen(ctx, address); err != nil {
			return nil, err
		} else if shared && !f.opts.Replaces {
			return nil, fmt.Errorf("listen %s: another process of this user has it: %w", address, syscall.EADDRINUSE)
		}
		return Listen(ctx, address)
	}
	// What is accepted has the options of the listener.
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	config.SetMultipathTCP(false) // the kernel does not splice it
	return config.Listen(ctx, "tcp", address)
}

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 3}

// Yield leaves what connects to the ports from now on to a successor that has opened them, as the function of that name
// does; they stay open until Shutdown.
func (f *Forwarder) Yield() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, w := range f.ports {
		if w.listener != nil {
			errs = append(errs, Yield(w.listener))
		}
	}
	return errors.Join(errs...)
}

// Why the forwarder itself ends connections.
var (
	errUnforwarded     = errors.New("the port is not forwarded there any more")
	errForwarderClosed = errors.New("the forwarder shuts down")
)
