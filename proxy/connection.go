package proxy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// alive is how long a connection that sends nothing has to live before a webspace is booted for it.
const alive = 250 * time.Millisecond

// connection is one client's, and in the end that to its target.
type connection struct {
	forwarder *Forwarder
	client    *net.TCPConn
	source    netip.Addr
	target    Target
	ctx       context.Context // cuts the connection off
	cancel    context.CancelCauseFunc

	// The end of what one side sends was passed on to the other: to the client, to the target.
	clientShut, targetShut atomic.Bool
}

// serve has the connection from its beginning to its end.
func (c *connection) serve() {
	defer c.cancel(nil)
	defer c.client.Close()
	stop := context.AfterFunc(c.ctx, func() { reset(c.client) })
	defer stop()
	endpoint, target, err := c.connect()
	if err != nil {
		c.fail(err)
		return
	}
	defer endpoint.Release(nil)
	c.splice(target)
}

// connect brings the connection to its target, which is booted if need be.
func (c *connection) connect() (Endpoint, *net.TCPConn, error) {
	f := c.forwarder
	if endpoint, ok := f.activator.Ready(c.target); ok {
		if conn, err := c.dial(c.ctx, endpoint); err == nil {
			return endpoint, conn, nil
		}
	}
	if err := c.awaitLife(); err != nil {
		return Endpoint{}, nil, err
	}
	release, err := f.opts.Holds.hold(f.activator, c.target.Webspace, c.source)
	if err != nil {
		return Endpoint{}, nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(c.ctx, f.opts.HoldTimeout)
	defer cancel()
	defer c.watch()()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		endpoint, err := f.activator.Activate(ctx, c.target)
		if err == nil {
			conn, e := c.dial(ctx, endpoint)
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
		if ctx.Err() != nil && c.ctx.Err() == nil {
			err = fmt.Errorf("held for %v: %w", f.opts.HoldTimeout, context.DeadlineExceeded)
		}
		return Endpoint{}, nil, err
	}
}

// dial connects to an endpoint. If that fails, the endpoint is given back.
func (c *connection) dial(ctx context.Context, endpoint Endpoint) (*net.TCPConn, error) {
	var conn net.Conn
	var err error
	var dialling sync.WaitGroup
	// Dialling makes a stack grow that the connection then has for as long as it lives.
	dialling.Go(func() { conn, err = c.forwarder.dialer.DialContext(ctx, "tcp", endpoint.Address.String()) })
	dialling.Wait()
	if err != nil {
		blame := (&dialError{err}).blame()
		if ctx.Err() != nil {
			blame = nil // it was not given its time
		}
		endpoint.Release(blame)
		c.forwarder.count(func(s *ForwarderStats) { s.DialErrors++ })
		c.forwarder.opts.Logger.DebugContext(ctx, "dial failed", "webspace", c.target.Webspace, "address", endpoint.Address, "error", err)
		return nil, err
	}
	return conn.(*net.TCPConn), nil
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
			c.cancel(errGone)
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
	stop := context.AfterFunc(c.ctx, func() { reset(target) })
	defer stop()
	// The kernel does not say when it moves something, but since when nothing has come.
	limit := c.forwarder.opts.IdleTimeout
	var idle *time.Timer
	idle = time.AfterFunc(math.MaxInt64, func() {
		if left := limit - min(sinceReceived(c.client), sinceReceived(target)); left > 0 {
			idle.Reset(left)
		} else {
			c.cancel(errIdle)
		}
	})
	idle.Reset(limit)
	defer idle.Stop()
	var back sync.WaitGroup
	f := c.forwarder
	back.Go(func() { pass(c.client, target, &c.clientShut, &c.targetShut, &f.sent) })
	pass(target, c.client, &c.targetShut, &c.clientShut, &f.received)
	back.Wait()
}

// pass moves what comes from one side to the other, and how it ends: with an end or with a reset.
func pass(to, from *net.TCPConn, toShut, fromShut *atomic.Bool, moved *atomic.Uint64) {
	err := move(to, from, moved)
	// Of the two who use a connection that is reset, the kernel tells only one; to the other it looks like an end. So it
	// is asked. When both sides have ended properly, it is closed as well, and the order of the two questions matters.
	if isClosed(from) && (err != nil || !fromShut.Load()) {
		reset(to)
		return
	}
	if err == nil {
		toShut.Store(true)
		_ = to.CloseWrite()
	}
	// Else it is the receiving side that is gone, and what it had sent before is passed on by the other call.
}

// fail ends a connection that could not be brought to its target.
func (c *connection) fail(err error) {
	if cause := context.Cause(c.ctx); cause != nil {
		err = cause
	}
	reset(c.client)
	f := c.forwarder
	f.opts.Logger.DebugContext(c.ctx, "connection failed", "webspace", c.target.Webspace, "port", c.target.Port, "error", err)
	if errors.Is(err, errGone) {
		f.count(func(s *ForwarderStats) { s.ClientsGone++ })
		return
	}
	f.count(func(s *ForwarderStats) { s.Failures++ })
	if _, ok := errors.AsType[*Failure](err); !ok && c.ctx.Err() == nil && !errdefs.IsNotFound(err) {
		f.opts.Logger.WarnContext(c.ctx, "activation failed", "webspace", c.target.Webspace, "port", c.target.Port, "error", err)
	}
}

// reset closes a connection in a way that nobody takes for an end.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
