package runtimetest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// Start implements [webspace.Runtime]. Concurrent calls join one start. It goes on when ctx ends, as in a real engine; a
// Stop or crash meanwhile fails it with Conflict.
func (f *Fake) Start(ctx context.Context, name string) error {
	return f.do(ctx, "Start", name, func() error { return f.start(ctx, name) })
}

func (f *Fake) start(ctx context.Context, name string) error {
	for {
		f.mu.Lock()
		i, err := f.find(name)
		if err != nil || i.flight == nil && i.Status == webspace.StatusRunning {
			f.mu.Unlock()
			return err
		}
		fl := i.flight
		if fl == nil {
			fl = f.launch(i, webspace.StatusStarting, webspace.StatusRunning, f.opts.BootDelay)
		}
		f.mu.Unlock()
		if err := fl.wait(ctx); err != nil || fl.to == webspace.StatusRunning {
			return err
		}
	}
}

// Stop implements [webspace.Runtime].
func (f *Fake) Stop(ctx context.Context, name string, grace time.Duration) error {
	return f.do(ctx, "Stop", name, func() error { return f.stop(ctx, name, grace) })
}

func (f *Fake) stop(ctx context.Context, name string, grace time.Duration) error {
	f.mu.Lock()
	i, err := f.find(name)
	if err != nil || i.flight == nil && i.Status == webspace.StatusStopped {
		f.mu.Unlock()
		return err
	}
	fl := i.flight
	switch {
	case fl == nil:
		fl = f.launch(i, webspace.StatusStopping, webspace.StatusStopped, min(grace, f.opts.StopDelay))
	case fl.to == webspace.StatusRunning || grace == 0:
		f.settle(i, webspace.StatusStopped)
		f.mu.Unlock()
		return nil
	}
	f.mu.Unlock()
	return fl.wait(ctx)
}

// Restart implements [webspace.Runtime].
func (f *Fake) Restart(ctx context.Context, name string, grace time.Duration) error {
	return f.do(ctx, "Restart", name, func() error {
		f.mu.Lock()
		i, err := f.find(name)
		if err == nil && (i.flight != nil || i.Status != webspace.StatusRunning) {
			err = fmt.Errorf("instance %q is %s: %w", name, i.Status, errdefs.ErrFailedPrecondition)
		}
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if err := f.stop(ctx, name, grace); err != nil {
			return err
		}
		return f.start(ctx, name)
	})
}

func (fl *flight) wait(ctx context.Context) error {
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// launch puts an instance on its way to a status.
func (f *Fake) launch(i *fakeInstance, during, to webspace.Status, delay time.Duration) *flight {
	fl := &flight{to: to, done: make(chan struct{})}
	if delay <= 0 {
		f.settle(i, to)
		close(fl.done)
		return fl
	}
	i.flight = fl
	i.Status = during
	if i.site != nil {
		i.site.refuse()
	}
	f.changed(i)
	fl.timer = time.AfterFunc(delay, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i.flight == fl {
			f.settle(i, to)
		}
	})
	return fl
}

// settle gives an instance a lasting status, whatever it was about, with all that comes with it.
func (f *Fake) settle(i *fakeInstance, status webspace.Status) {
	if fl := i.flight; fl != nil {
		fl.timer.Stop()
		if fl.to != status {
			fl.err = fmt.Errorf("instance %q became %s meanwhile: %w", i.Name, status, errdefs.ErrConflict)
		}
		i.flight = nil
		close(fl.done)
	}
	if i.Status == status {
		return
	}
	i.Status = status
	if up := status == webspace.StatusRunning || status == webspace.StatusFrozen; up && i.down == nil {
		i.down = make(chan struct{})
		i.startedAt = time.Now()
		i.print("%s is up", i.Name)
		f.serve(i, f.opts.ListenDelay)
	} else if !up && i.down != nil {
		close(i.down)
		i.down = nil
		i.site.close()
		i.site = nil
		i.print("%s is down", i.Name)
	}
	f.changed(i)
}

// site is what a running instance serves.
type site struct {
	timer  *time.Timer // until it listens
	listen net.Listener
	server *http.Server
}

func (f *Fake) serve(i *fakeInstance, delay time.Duration) {
	if f.opts.Serve == nil {
		return
	}
	s := &site{server: &http.Server{Handler: f.opts.Serve(i.Name), ReadHeaderTimeout: time.Minute}}
	i.site = s
	if delay <= 0 {
		f.listen(i, s)
		return
	}
	s.timer = time.AfterFunc(delay, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i.site == s && i.Status == webspace.StatusRunning {
			f.listen(i, s)
		}
	})
}

func (f *Fake) listen(i *fakeInstance, s *site) {
	var err error
	if !i.Address.IsLoopback() {
		err = fmt.Errorf("%s is not an address of the loopback", i.Address)
	} else {
		s.listen, err = net.Listen("tcp", netip.AddrPortFrom(i.Address, f.opts.Port).String())
	}
	if err != nil {
		i.print("listen: %v", err)
		return
	}
	listener := s.listen
	f.servers.Go(func() { _ = s.server.Serve(listener) })
}

// refuse makes the site take no more connections.
func (s *site) refuse() {
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.listen != nil {
		_ = s.listen.Close()
	}
}

func (s *site) close() {
	if s != nil {
		s.refuse()
		_ = s.server.Close()
	}
}

// with runs change on an instance, if there is one of that name, and says whether there is.
func (f *Fake) with(name string, change func(*fakeInstance)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.instances[name]
	if i != nil {
		change(i)
	}
	return i != nil
}

// Crash ends a running or starting instance at once, connections and all. False: there is no such instance.
func (f *Fake) Crash(name string) bool {
	return f.with(name, func(i *fakeInstance) { f.settle(i, webspace.StatusStopped) })
}

// PowerOff shuts an instance down from the inside: it is stopping for StopDelay. It does not wait for the end. False:
// there is no such instance.
func (f *Fake) PowerOff(name string) bool {
	return f.with(name, func(i *fakeInstance) {
		switch {
		case i.flight != nil && i.flight.to == webspace.StatusRunning:
			f.settle(i, webspace.StatusStopped)
		case i.flight == nil && i.down != nil:
			f.launch(i, webspace.StatusStopping, webspace.StatusStopped, f.opts.StopDelay)
		}
	})
}

// SetAddress gives an instance another address (zero: none), of which the others know nothing. What it serves moves
// along; connections are closed. False: there is no such instance.
func (f *Fake) SetAddress(name string, address netip.Addr) bool {
	return f.with(name, func(i *fakeInstance) {
		delete(f.addresses, i.Address)
		i.Address = address
		if address.IsValid() {
			f.addresses[address] = true
		}
		if i.site != nil && i.Status == webspace.StatusRunning {
			i.site.close()
			f.serve(i, 0)
		}
		f.changed(i)
	})
}

// SetStatus gives an instance any status, at once. False: there is no such instance.
func (f *Fake) SetStatus(name string, status webspace.Status) bool {
	return f.with(name, func(i *fakeInstance) { f.settle(i, status) })
}

// Put adds or replaces an instance as somebody with access to the engine could: no name, record, status or address is
// refused. Its revision is a new one. An instance without an address gets none.
func (f *Fake) Put(instance webspace.Instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.instances[instance.Name]; i != nil {
		f.remove(i)
	}
	f.put(instance)
}

// Remove deletes an instance in any status, as somebody with access to the engine could. False: there is none.
func (f *Fake) Remove(name string) bool { return f.with(name, f.remove) }

// Calls returns how often an operation ("Start") was called, refused ones included.
func (f *Fake) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}
