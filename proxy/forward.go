package proxy

import (
	"context"
	"errors"
	"net"
	"time"
)

// forward is one port that is forwarded.
type forward struct {
	forwarder *Forwarder
	port      int
	ctx       context.Context // ends when the port is to be closed
	stop      context.CancelFunc
	ended     chan struct{} // closed when it is

	// Guarded by Forwarder.mu.
	listener net.Listener // nil as long as the port could not be opened
	err      error        // why
	target   Target
	aimed    context.Context // of the connections to target
	leave    context.CancelCauseFunc
}

func newForward(f *Forwarder, port int) *forward {
	w := &forward{forwarder: f, port: port, ended: make(chan struct{})}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// aim makes all that comes from now on go to t.
func (w *forward) aim(ctx context.Context, t Target) {
	w.target = t
	w.aimed, w.leave = context.WithCancelCause(ctx)
}

// close closes the port, soon after.
func (w *forward) close() {
	w.stop()
	if w.listener != nil {
		_ = w.listener.Close()
	}
}

// run takes connections until the port is to be closed. No error ends it: whatever there is too little of, or whoever has
// the port, it may be different in a moment.
func (w *forward) run(l net.Listener, err error) {
	defer close(w.ended)
	log := w.forwarder.log
	if err != nil {
		log.Warn("can not open a port", "port", w.port, "error", err)
		if l = w.open(); l == nil {
			return
		}
		log.Info("opened a port at last", "port", w.port)
	}
	_ = accept(w.ctx, l, w.admit, func(err error, again bool) {
		w.forwarder.acceptErrors.Add(1)
		if !again {
			log.Warn("can not take connections", "port", w.port, "error", err)
		}
	})
}

// open tries to open the port until that works, or until it is not wanted any more: then the listener is nil. What has it
// may be another program, or just a connection from this host, which the kernel has given that port at its own end.
func (w *forward) open() net.Listener {
	f := w.forwarder
	for pause := 100 * time.Millisecond; pauseFor(w.ctx, pause); pause = min(2*pause, 10*time.Second) {
		l, err := f.listen(w)
		f.mu.Lock()
		unwanted := w.ctx.Err() != nil
		if !unwanted {
			w.listener, w.err = l, err
		}
		f.mu.Unlock()
		switch {
		case err != nil:
		case unwanted:
			_ = l.Close()
		default:
			return l
		}
	}
	return nil
}

// admit serves a connection, unless there are too many.
func (w *forward) admit(client net.Conn) {
	f := w.forwarder
	f.accepted.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.newConnection(w.aimed, client)
	if f.closed || w.ctx.Err() != nil {
		reset(c.client)
		return
	}
	c.target = w.target
	release, err := f.connections.Acquire(c.target.Webspace, c.source)
	if err != nil {
		reset(c.client)
		return
	}
	c.release = release
	f.running.Go(func() { c.run(c.carry) })
}

// accept gives the connections of l to take, until ctx has ended or l is closed. No other error ends it: whatever there is
// too little of, it may be different in a moment. failed is told of it, and whether the try before has failed as well.
func accept(ctx context.Context, l net.Listener, take func(net.Conn), failed func(err error, again bool)) error {
	const first, last = 5 * time.Millisecond, time.Second
	for pause := first; ; {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = first
			take(conn)
			continue
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return err
		}
		failed(err, pause > first)
		if !pauseFor(ctx, pause) {
			return err
		}
		pause = min(2*pause, last)
	}
}

// pauseFor returns false if ctx ended before.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
