package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// Connections are looked at each so often. A side that acknowledges nothing for so long is gone.
const lookEach, vanishedAfter = 15 * time.Second, 30 * time.Second

// alive is how long a connection that sends nothing has to live before a webspace is booted for it.
const alive = 250 * time.Millisecond

// carrier is what the connections of a forwarder, or of a TLS gateway, have in common: all that brings them to their
// targets.
type carrier struct {
	activator                Activator
	holds                    *Holds
	connections              *Holds // all of them, held or not
	holdTimeout, idleTimeout time.Duration
	proxyProtocol            bool // targets are told who the client is
	log                      *slog.Logger
	dialer                   *net.Dialer
	pipes                    permits // of connections on which much is moved

	ctx     context.Context // of all connections
	cancel  context.CancelCauseFunc
	running sync.WaitGroup

	// See TCPStats.
	accepted, acceptErrors, dialErrors, clientsGone, failures, received, sent atomic.Uint64
}

// TCPStats count the connections that are passed on as they are.
type TCPStats struct {
	Accepted     uint64 // connections that came
	AcceptErrors uint64 // tries to take one that failed, for want of descriptors say
	DialErrors   uint64 // tries to connect to an endpoint that failed; the connection was then held, or went on being held
	ClientsGone  uint64 // clients that left before they were connected; scans of ports, for example
	Failures     uint64 // connections whose target could not be reached in time

	// Bytes from clients to targets and from targets to clients. Of a connection that is open the last few megabytes are
	// not among them.
	Received, Sent uint64

	// How many were refused, by the limit that they hit.
	RefusedWebspace, RefusedSource, RefusedTotal uint64

	Live  int // connections that are passed on now, held ones among them
	Holds HoldStats
}

func (c *carrier) tcpStats() TCPStats {
	all := c.connections.Stats()
	return TCPStats{
		Accepted: c.accepted.Load(), AcceptErrors: c.acceptErrors.Load(), DialErrors: c.dialErrors.Load(),
		ClientsGone: c.clientsGone.Load(), Failures: c.failures.Load(), Received: c.received.Load(), Sent: c.sent.Load(),
		RefusedWebspace: all.RefusedWebspace, RefusedSource: all.RefusedSource, RefusedTotal: all.RefusedTotal,
		Live: all.Held, Holds: c.holds.Stats(),
	}
}

// newCarrier completes c with defaults.
func newCarrier(c *carrier, limits HoldLimits) *carrier {
	if c.holds == nil {
		c.holds = NewHolds(nil)
	}
	if c.holdTimeout <= 0 {
		c.holdTimeout = 50 * time.Second
	}
	if c.idleTimeout <= 0 {
		c.idleTimeout = time.Hour
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if limits.Total <= 0 {
		limits.Total = MaxConns()
	}
	limits.Wakes = -1
	c.connections = NewHolds(&limits)
	c.dialer = newDialer(0) // see deadline
	c.pipes.left.Store(math.MaxInt32)
	if limit := descriptorLimit(); limit > 0 {
		c.pipes.left.Store(int32(limit / 32)) // two each: a sixteenth of all
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// permits are for something of which there is only so much.
type permits struct{ left atomic.Int32 }

// take returns false if there is none left.
func (p *permits) take() bool {
	if p.left.Add(-1) >= 0 {
		return true
	}
	p.left.Add(1)
	return false
}

func (p *permits) give() { p.left.Add(1) }

// drain waits for all that runs. When ctx ends before, it is cut off for the given reason, and the error is ctx's.
func (c *carrier) drain(ctx context.Context, reason error) error {
	quiet := make(chan struct{})
	go func() {
		c.running.Wait()
		close(quiet)
	}()
	var err error
	select {
	case <-quiet:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.cancel(reason)
	<-quiet
	return err
}

// connection is one client's, and in the end that to its target.
type connection struct {
	*carrier
	conn   net.Conn     // the client's, as it was accepted
	client *net.TCPConn // the socket of conn
	source netip.Addr
	target Target
	ctx    context.Context // ends when connections to the target are to be cut off

	// early was read from the client already, to know what it wants. The target gets it first.
	early []byte
	// refusal is what the client is told if it can not be served; without, it gets a reset.
	refusal func(error) []byte

	// release gives its place among the connections back, if it has one.
	release func()

	// given says that somebody else has the client's connection now, and closes it.
	given bool

	// The end of what one side sends was passed on to the other: to the client, to the target.
	clientShut, targetShut atomic.Bool

	mu      sync.Mutex
	reached *net.TCPConn            // to the target, once there is one
	abandon context.CancelCauseFunc // ends the wait for the target
	cause   error                   // why it was cut off
}

// newConnection returns nil if conn is no TCP connection.
func (c *carrier) newConnection(ctx context.Context, conn net.Conn) *connection {
	client := socketOf(conn)
	if client == nil {
		return nil
	}
	n := &connection{carrier: c, conn: conn, client: client, ctx: ctx}
	if address, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		n.source = address.AddrPort().Addr()
	}
	return n
}

// run calls serve, which has the connection until it returns, or until what it returns does. That runs by itself: what
// serve did has made its stack grow, and the connection would have that for as long as it lives.
func (c *connection) run(serve func() (rest func())) {
	stop := context.AfterFunc(c.ctx, func() { c.cut(context.Cause(c.ctx)) })
	end := func() {
		stop()
		if !c.given {
			_ = c.conn.Close()
		}
		if c.release != nil {
			c.release()
		}
	}
	rest := serve()
	if rest == nil {
		end()
		return
	}
	c.running.Go(func() {
		defer end()
		rest()
	})
}

// cut ends the connection at once, whatever it does.
func (c *connection) cut(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
	}
	reset(c.client)
	if c.reached != nil {
		reset(c.reached)
	}
	if c.abandon != nil {
		c.abandon(cause)
	}
}

// wasCut returns why the connection was cut off, if it was.
func (c *connection) wasCut() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		return context.Cause(c.ctx) // cut may be about to be called
	}
	return c.cause
}

// carry brings the connection to its target. The rest is to bring it to its end.
func (c *connection) carry() (rest func()) {
	endpoint, target, err := c.connect()
	if err != nil {
		c.fail(err)
		return nil
	}
	return func() {
		defer endpoint.Release(nil)
		c.splice(target)
	}
}

// connect brings the connection to its target, which is booted if need be.
func (c *connection) connect() (Endpoint, *net.TCPConn, error) {
	if endpoint, ok := c.activator.Ready(c.target); ok {
		if conn, err := c.dial(endpoint); err == nil {
			return endpoint, conn, nil
		}
	}
	if len(c.early) == 0 {
		if err := c.awaitLife(); err != nil {
			return Endpoint{}, nil, err
		}
	}
	release, err := c.holds.hold(c.activator, c.target.Webspace, c.source)
	if err != nil {
		return Endpoint{}, nil, err
	}
	defer release()
	ctx, abandon := context.WithCancelCause(c.ctx)
	defer abandon(nil)
	ctx, cancel := context.WithTimeout(ctx, c.holdTimeout)
	defer cancel()
	c.mu.Lock()
	if c.abandon = abandon; c.cause != nil {
		abandon(c.cause)
	}
	c.mu.Unlock()
	defer c.watch()()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		endpoint, err := c.activator.Activate(ctx, c.target)
		if err == nil {
			conn, e := c.dial(endpoint)
			if e == nil {
				return endpoint, conn, nil
			}
			// It may have stopped, crashed or moved at this moment; its new life is as good. A pause, lest the activator
			// and this loop argue at full speed.
			err = e
			if pauseFor(ctx, pause) {
				continue
			}
		}
		if ctx.Err() != nil && c.wasCut() == nil {
			err = fmt.Errorf("held for %v: %w", c.holdTimeout, context.DeadlineExceeded)
		}
		return Endpoint{}, nil, err
	}
}

// dial connects to an endpoint, which then has what the client has sent before. If that fails, the endpoint is given back.
func (c *connection) dial(endpoint Endpoint) (*net.TCPConn, error) {
	ctx := deadline{context.Background(), time.Now().Add(dialTimeout)}
	conn, err := c.dialer.DialContext(ctx, "tcp", endpoint.Address.String())
	if err == nil {
		err = c.begin(conn)
	}
	if err != nil {
		endpoint.Release((&dialError{err}).blame())
		c.dialErrors.Add(1)
		c.log.DebugContext(c.ctx, "dial failed", "webspace", c.target.Webspace, "address", endpoint.Address, "error", err)
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// deadline is a context that can not be cancelled. Package net takes longer to watch others than to connect. Without Done
// it would not look at the deadline.
type deadline struct {
	context.Context
	at time.Time
}

var never = make(chan struct{})

func (d deadline) Deadline() (time.Time, bool)         { return d.at, true }
func (d deadline) Done() <-chan struct{}               { return never }
func (d deadline) AfterFunc(func()) (stop func() bool) { return func() bool { return true } }

// begin writes what stands before all that is still to come from the client. A connection that does not take it is closed.
func (c *connection) begin(target net.Conn) error {
	first := c.early
	if c.proxyProtocol {
		header, err := proxyHeader(c.conn.RemoteAddr(), c.conn.LocalAddr())
		if err != nil {
			_ = target.Close()
			return err
		}
		first = append(header, first...)
	}
	if len(first) == 0 {
		return nil
	}
	_ = target.SetWriteDeadline(time.Now().Add(dialTimeout))
	if _, err := target.Write(first); err != nil {
		_ = target.Close()
		return err
	}
	return target.SetWriteDeadline(time.Time{})
}

// awaitLife returns when the client has sent something or has just stayed. Who scans ports does neither. Nothing is read.
func (c *connection) awaitLife() error {
	raw, err := c.client.SyscallConn()
	if err != nil {
		return err
	}
	_ = c.client.SetReadDeadline(time.Now().Add(alive))
	client := quiet
	err = raw.Read(func(fd uintptr) bool {
		client = presenceOf(fd)
		return client != quiet
	})
	_ = c.client.SetReadDeadline(time.Time{})
	switch {
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case client == gone:
		return errGone
	}
	return nil
}

// watch cuts the connection off when the client has left, until the returned function is called. It is woken by the
// kernel, and reads nothing.
func (c *connection) watch() (stop func()) {
	raw, err := c.client.SyscallConn()
	if err != nil {
		return func() {}
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		if raw.Read(func(fd uintptr) bool { return presenceOf(fd) == gone }) == nil {
			c.cut(errGone)
		}
	})
	return func() {
		_ = c.client.SetReadDeadline(time.Now())
		watching.Wait()
		_ = c.client.SetReadDeadline(time.Time{})
	}
}

// splice moves bytes between the client and its target until both have ended.
func (c *connection) splice(target *net.TCPConn) {
	defer target.Close()
	c.mu.Lock()
	if c.reached = target; c.cause != nil {
		reset(target)
	}
	c.mu.Unlock()
	// The kernel does not say when it moves something, but since when nothing has come.
	limit := c.idleTimeout
	var look *time.Timer
	look = time.AfterFunc(math.MaxInt64, func() {
		left := limit - min(sinceReceived(c.client), sinceReceived(target))
		switch {
		case left <= 0:
			c.cut(errIdle)
		case vanished(target, vanishedAfter), vanished(c.client, vanishedAfter):
			c.cut(errVanished)
		default:
			look.Reset(min(left, lookEach))
		}
	})
	look.Reset(min(limit, lookEach))
	defer look.Stop()
	var back sync.WaitGroup
	back.Go(func() { pass(c.client, target, &c.clientShut, &c.targetShut, &c.sent, &c.pipes) })
	pass(target, c.client, &c.targetShut, &c.clientShut, &c.received, &c.pipes)
	back.Wait()
}

// pass moves what comes from one side to the other, and how it ends: with an end or with a reset.
func pass(to, from *net.TCPConn, toShut, fromShut *atomic.Bool, moved *atomic.Uint64, pipes *permits) {
	err := move(to, from, moved, pipes)
	// Of the two who use a connection that is reset, the kernel tells only one; to the other it looks like an end. So it
	// is asked. When both sides have ended properly, it is closed as well, and the order of the last two questions matters.
	if (err != nil || !fromShut.Load()) && isClosed(from) && (err != nil || !fromShut.Load()) {
		reset(to)
		return
	}
	if err == nil {
		if toShut.Store(true); !fromShut.Load() {
			_ = to.CloseWrite()
		} // else both have ended, and are about to be closed
	}
	// Else it is the receiving side that is gone, and what it had sent before is passed on by the other call.
}

// fail ends a connection that could not be brought to its target.
func (c *connection) fail(err error) {
	cause := c.wasCut()
	if cause != nil {
		err = cause
	}
	c.log.DebugContext(c.ctx, "connection failed", "webspace", c.target.Webspace, "port", c.target.Port, "error", err)
	if errors.Is(err, errGone) {
		c.clientsGone.Add(1)
		reset(c.client)
		return
	}
	c.failures.Add(1)
	if _, ok := errors.AsType[*Failure](err); !ok && cause == nil && !errdefs.IsNotFound(err) {
		c.log.WarnContext(c.ctx, "activation failed", "webspace", c.target.Webspace, "port", c.target.Port, "error", err)
	}
	c.refuse(err)
}

// refuse ends a connection that is not served.
func (c *connection) refuse(err error) {
	var words []byte
	if c.refusal != nil {
		words = c.refusal(err)
	}
	if len(words) == 0 {
		reset(c.client)
		return
	}
	_ = c.client.SetDeadline(time.Now().Add(lastWords))
	if _, err := c.client.Write(words); err != nil || c.client.CloseWrite() != nil {
		reset(c.client)
		return
	}
	// Closing with something unread resets the connection, and the words might be lost.
	_, _ = io.CopyN(io.Discard, c.client, 64<<10)
}

// reset closes a connection in a way that nobody takes for an end.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// socketOf returns the TCP connection that others are wrapped around, or nil.
func socketOf(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
