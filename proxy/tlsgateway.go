package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// TLSGatewayOptions are what may differ between TLS gateways. The zero value of each is its default.
type TLSGatewayOptions struct {
	// TLSConfig is for the names whose TLS ends here; it has the certificates. HTTP/2, HTTP/1.1 and "acme-tls/1" are
	// negotiated, and TLS 1.2 is the oldest version, unless it says something else. A client that negotiates "acme-tls/1"
	// gets the certificate of its challenge from GetCertificate, and nothing more. Default: no TLS ends here, and such names
	// are unknown.
	TLSConfig *tls.Config
	// HelloTimeout is how long a client has to say what it wants: 3 seconds.
	HelloTimeout time.Duration
	// Holds bound the connections that wait; share them with everything else that holds. Default: new ones.
	Holds *Holds
	// HoldTimeout is the longest time that a connection waits for its target: 50 seconds.
	HoldTimeout time.Duration
	// Limits bound the connections that are passed through, held or not: 1024 to one webspace, 64 from one source, and
	// [MaxConns] in total. What has not said yet what it wants is bounded by [Conns].
	Limits HoldLimits
	// IdleTimeout ends a connection that is passed through, and on which nothing has come from either side for that long:
	// 1 hour. It takes Linux.
	IdleTimeout time.Duration
	// ProxyProtocol makes each connection to a target begin with a PROXY header, version 2, that says who the client is.
	// Whatever listens there must expect it.
	ProxyProtocol bool
	// Logger gets a debug record for each connection that failed, and a warning where the cause is neither the client nor
	// the target. Default: nothing is logged.
	Logger *slog.Logger
}

// TLSGateway looks at the server name in what TLS clients say first (SNI). Connections for some names it passes through as
// they are, to targets that have their own certificates, and holds them while these boot, as a [Forwarder] does. For the
// others TLS ends here: [TLSGateway.Terminated] has those connections, for a [Gateway] to serve.
//
// A client that is not served is told so with an alert of TLS: unrecognized_name where nobody has the name, internal_error
// where its target can not be reached or there are too many connections. What is no TLS gets a reset.
//
// Create it with [NewTLSGateway], serve with [TLSGateway.Serve] and end it with [TLSGateway.Shutdown]. [Conns] bound the
// connections that have not said yet what they want, which it does not do itself. It is safe for concurrent use.
type TLSGateway struct {
	*carrier
	router     TLSRouter
	opts       TLSGatewayOptions
	config     *tls.Config // nil if no TLS ends here
	terminated *terminated

	mu        sync.Mutex
	closed    bool
	listeners map[*net.Listener]struct{}
	stats     TLSGatewayStats
}

// TLSGatewayStats count what a TLS gateway has done since it was made.
type TLSGatewayStats struct {
	TCPStats          // Accepted and AcceptErrors are of all connections
	Terminated uint64 // connections of which TLS ended here
	// Hellos counts clients that did not say what they want, by the reason; see [HelloFailures].
	Hellos map[string]uint64
	// UnknownNames counts connections for names that nobody has.
	UnknownNames uint64
}

// NewTLSGateway returns a TLS gateway to what router and activator know. nil options are the defaults.
func NewTLSGateway(router TLSRouter, activator Activator, opts *TLSGatewayOptions) *TLSGateway {
	g := &TLSGateway{router: router, listeners: map[*net.Listener]struct{}{}}
	if opts != nil {
		g.opts = *opts
	}
	if g.opts.HelloTimeout <= 0 {
		g.opts.HelloTimeout = 3 * time.Second
	}
	if g.opts.TLSConfig != nil {
		g.config = g.opts.TLSConfig.Clone()
		if g.config.MinVersion == 0 {
			g.config.MinVersion = tls.VersionTLS12
		}
		if len(g.config.NextProtos) == 0 {
			g.config.NextProtos = []string{"h2", "http/1.1", "acme-tls/1"}
		}
	}
	g.carrier = newCarrier(&carrier{
		activator: activator, holds: g.opts.Holds, holdTimeout: g.opts.HoldTimeout, idleTimeout: g.opts.IdleTimeout,
		proxyProtocol: g.opts.ProxyProtocol, log: g.opts.Logger,
	}, g.opts.Limits)
	g.terminated = &terminated{conns: make(chan net.Conn)}
	g.terminated.ctx, g.terminated.cancel = context.WithCancel(context.Background())
	g.stats.Hellos = map[string]uint64{}
	return g
}

// Serve serves the TCP connections of l and closes it in the end. It returns http.ErrServerClosed after Shutdown, and only
// then or when l is closed. It may be called for several listeners.
func (g *TLSGateway) Serve(l net.Listener) error {
	defer l.Close()
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return http.ErrServerClosed
	}
	g.listeners[&l] = struct{}{}
	g.mu.Unlock()
	err := accept(g.ctx, l, g.admit, func(err error, again bool) {
		g.acceptErrors.Add(1)
		if !again {
			g.log.Warn("can not take connections", "address", l.Addr(), "error", err)
		}
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.listeners, &l)
	if g.closed {
		return http.ErrServerClosed
	}
	return err
}

// Terminated returns the listener of the connections whose TLS ends here, for [Gateway.Serve]. They are [*tls.Conn], their
// handshakes are still to come. Whoever has accepted one has it: Shutdown waits for none of them. After the listener was
// closed, such connections are refused. It is the same one at each call.
func (g *TLSGateway) Terminated() net.Listener { return g.terminated }

// Shutdown closes the listeners, then waits for the connections that are passed through, held ones among them. When ctx
// ends before they do, they are cut off, and the error is ctx's. Either way nothing of the gateway runs any more when it
// returns, unless the TLSRouter or the Activator does not return. It may be called again.
func (g *TLSGateway) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	listeners := slices.Collect(maps.Keys(g.listeners))
	g.mu.Unlock()
	for _, l := range listeners {
		_ = (*l).Close()
	}
	err := g.drain(ctx, errTLSGatewayClosed)
	_ = g.terminated.Close()
	return err
}

// Stats returns the counters.
func (g *TLSGateway) Stats() TLSGatewayStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	stats := g.stats
	stats.TCPStats, stats.Hellos = g.tcpStats(), maps.Clone(stats.Hellos)
	return stats
}

// admit serves a connection.
func (g *TLSGateway) admit(conn net.Conn) {
	g.accepted.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.newConnection(g.ctx, conn)
	if g.closed || c == nil {
		_ = conn.Close()
		return
	}
	c.refusal = refusal
	g.running.Go(func() {
		if here := g.route(c); here != nil {
			g.terminate(here)
		}
	})
}

// route serves a connection that is passed through or refused. It returns those whose TLS ends here.
func (g *TLSGateway) route(c *connection) (here net.Conn) {
	c.run(func() (rest func()) {
		hello, err := readHello(c.client, g.opts.HelloTimeout)
		if err != nil {
			g.misunderstood(c, err)
			return nil
		}
		c.target, err = g.router.RouteTLS(hello.serverName)
		switch {
		case err == nil:
			c.early = hello.bytes
			return g.pass(c)
		case errdefs.IsFailedPrecondition(err) && g.config != nil:
			here = tls.Server(&replayConn{TCPConn: c.client, conn: c.conn, early: hello.bytes}, g.config)
			c.given = true
		default:
			if errdefs.IsFailedPrecondition(err) { // nobody has it here
				err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
			}
			if errdefs.IsNotFound(err) {
				g.count(func(s *TLSGatewayStats) { s.UnknownNames++ })
			}
			g.log.DebugContext(c.ctx, "connection refused", "server_name", hello.serverName, "error", err)
			c.refuse(err)
		}
		return nil
	})
	return here
}

// pass brings a connection to its target as it is.
func (g *TLSGateway) pass(c *connection) (rest func()) {
	release, err := g.connections.Acquire(c.target.Webspace, c.source)
	if err != nil {
		c.refuse(err)
		return nil
	}
	c.release = release
	ConnState(c.conn, http.StateActive)
	return c.carry()
}

func (g *TLSGateway) misunderstood(c *connection, err error) {
	bad, _ := errors.AsType[*helloError](err)
	g.count(func(s *TLSGatewayStats) { s.Hellos[bad.reason]++ })
	g.log.DebugContext(c.ctx, "no ClientHello", "error", err)
	c.refuse(err)
}

// terminate gives a connection to whoever serves the TLS that ends here.
func (g *TLSGateway) terminate(conn net.Conn) {
	timeout := time.NewTimer(g.opts.HelloTimeout)
	defer timeout.Stop()
	select {
	case g.terminated.conns <- conn:
		g.count(func(s *TLSGatewayStats) { s.Terminated++ })
		return
	case <-g.terminated.ctx.Done():
	case <-g.ctx.Done():
	case <-timeout.C:
	}
	_ = conn.(*tls.Conn).NetConn().Close()
}

func (g *TLSGateway) count(change func(*TLSGatewayStats)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.stats)
}

// refusal returns the alert for an error.
func refusal(err error) []byte {
	if bad, ok := errors.AsType[*helloError](err); ok {
		return bad.alert
	}
	if errdefs.IsNotFound(err) {
		return alert(tlsUnrecognizedName)
	}
	return alert(tlsInternalError)
}

// terminated is the listener of connections whose TLS ends here.
type terminated struct {
	conns  chan net.Conn
	ctx    context.Context // ends when it is closed
	cancel context.CancelFunc
}

func (t *terminated) Accept() (net.Conn, error) {
	select {
	case conn := <-t.conns:
		return conn, nil
	case <-t.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (t *terminated) Close() error   { t.cancel(); return nil }
func (t *terminated) Addr() net.Addr { return terminatedAddr{} }

type terminatedAddr struct{}

func (terminatedAddr) Network() string { return "tls" }
func (terminatedAddr) String() string  { return "terminated" }

var errTLSGatewayClosed = errors.New("the TLS gateway shuts down")
