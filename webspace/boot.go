package webspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/proxy"
)

// errGone says that an instance ended while it was waited for.
var errGone = errors.New("the instance stopped while it started up")

// errAbandoned says that nobody waits any more for a boot that has not begun.
var errAbandoned = errors.New("nobody waits for it any more")

// maxBootSlot is how long after its start an instance counts as booting for the limit of boots at a time.
const maxBootSlot = 10 * time.Second

// activate is one flight. An instance that ends while it boots is started again a few times: shut down by its user, by
// a crash, or by us, that is no reason for whoever waits to get nothing.
func (m *Manager) activate(ctx context.Context, t proxy.Target) error {
	const boots = 3
	for failed := 0; ; {
		e := m.index.find(t.Webspace)
		if e == nil {
			return errNobody
		}
		halts := e.activation.haltCount()
		var clock bootClock
		at, booted, done, err := m.ensureRunning(ctx, e, t.Port, &clock)
		if err == nil {
			// A member who asks for a long startupDelay does not keep the others waiting for all of it.
			limit := time.AfterFunc(maxBootSlot, done)
			if booted {
				clock.enter(&clock.boot.Probe, BootSilent)
			}
			err = m.awaitReady(ctx, e, at, booted)
			limit.Stop()
			done()
		}
		m.bootEnded(ctx, &clock, err)
		if err == nil {
			if booted && m.opts.Observer.FirstByte != nil {
				e.activation.booted()
			}
			return nil
		}
		if !errors.Is(err, errGone) {
			return err
		}
		if e.activation.haltCount() == halts {
			failed++
			m.bootFailed(e, err)
		}
		if failed == boots {
			return e.activation.failure(err)
		}
	}
}

// booted notes the end of a boot, for the first answer after it.
func (a *activation) booted() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bootedAt = time.Now()
}

func (a *activation) haltCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.halts
}

// bootFailed makes the next boot wait: 1 s after the first failure in a row, doubling up to 5 minutes. A webspace that
// can not boot is so kept from using up the host with every request for it.
func (m *Manager) bootFailed(e *entry, err error) {
	a := &e.activation
	a.mu.Lock()
	defer a.mu.Unlock()
	delay := a.delay(a.failures)
	a.failures++
	a.retryAt, a.lastErr = time.Now().Add(delay), err
	m.log.Warn("boot failed", "webspace", e.name, "failures", a.failures, "retry_in", delay, "error", err)
}

// delay is how long to wait after a failure that had so many before it.
func (a *activation) delay(before int) time.Duration {
	return min(time.Second<<min(before, 20), 5*time.Minute)
}

// shortLife is how long an instance has to run to have been worth its boot, and freeLives is how many that are shorter it may
// have in a row: its user may be trying things out.
const (
	shortLife = time.Minute
	freeLives = 5
)

// errShortLife says that an instance had hardly come up when it stopped.
var errShortLife = errors.New("the instance has stopped by itself again, soon after its boot")

// endLife notes that an instance which took connections has stopped. One that does so by itself again and again, soon after
// each boot, is booted less and less often. What we have stopped does not count, and neither does a boot that failed, which
// whoever waited for it notes.
func (a *activation) endLife(now time.Time) {
	if a.draining || now.Sub(a.born) >= shortLife {
		a.short = 0
		return
	}
	if a.short++; a.short > freeLives {
		a.retryAt, a.lastErr = now.Add(a.delay(a.short-freeLives-1)), errShortLife
	}
}

func (a *activation) failure(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	reason := "This webspace could not be started."
	if errors.Is(err, errShortLife) {
		reason = "This webspace stops by itself soon after it has been started."
	}
	return &proxy.Failure{
		Reason:     reason,
		RetryAfter: max(time.Until(a.retryAt), time.Second),
		Err:        fmt.Errorf("%v: %w", err, errdefs.ErrUnavailable), // the cause's class would say something else
	}
}

// awaitBackoff waits until the next boot may be tried, or fails if that is not soon.
func (a *activation) awaitBackoff(ctx context.Context) error {
	a.mu.Lock()
	wait, fails, lastErr := time.Until(a.retryAt), a.backsOff(), a.lastErr
	a.mu.Unlock()
	if fails {
		return a.failure(lastErr)
	}
	return sleep(ctx, max(wait, 0))
}

// backsOff reports whether a boot would fail now without being tried. a.mu is held.
func (a *activation) backsOff() bool {
	return time.Until(a.retryAt) > 0 && max(a.failures, a.short-freeLives) > 2
}

// ensureRunning starts the instance unless it runs, and returns where it is reached. The boot slot that a start takes
// is held until done is called, because an instance that has just started is still busy booting.
func (m *Manager) ensureRunning(ctx context.Context, e *entry, port int, clock *bootClock) (at netip.AddrPort, booted bool, done func(), err error) {
	var slot func() // gives the boot slot back; nil without one
	done = func() {
		if slot != nil {
			slot()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	for {
		var unlock func()
		if m.index.look(e).runs() {
			unlock, err = m.lifecycle.Lock(ctx, e.name)
		} else {
			clock.enter(&clock.boot.Queue, BootNoSlot)
			slot, unlock, err = m.lockWithSlot(ctx, e.name, func() (func(), error) { return m.awaitSlot(ctx, e) })
		}
		if err != nil {
			return at, false, done, err
		}
		var again bool
		at, booted, again, err = m.startLocked(ctx, e, port, slot != nil, clock)
		unlock()
		if again {
			continue
		}
		if !booted {
			done() // somebody else has booted it meanwhile, and has a slot for that
		}
		return at, booted, done, err
	}
}

// lockWithSlot gets a boot slot, then the lock of a webspace. The slot comes first, so that a stop or a deletion does not
// wait behind the crowd; and it is not kept while the lock is waited for, so that a webspace whose deletion takes long
// keeps nobody else from booting.
func (m *Manager) lockWithSlot(ctx context.Context, name string, slot func() (func(), error)) (release, unlock func(), err error) {
	for {
		if release, err = slot(); err != nil {
			return nil, nil, err
		}
		soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		unlock, err = m.lifecycle.Lock(soon, name)
		cancel()
		if err == nil {
			return release, unlock, nil
		}
		release()
		if unlock, err = m.lifecycle.Lock(ctx, name); err != nil {
			return nil, nil, err
		}
		unlock()
	}
}

// runs reports whether there is nothing to start.
func (v view) runs() bool { return v.status == StatusRunning || v.status == StatusStarting }

// awaitSlot waits until the webspace may be booted, as far as its own failures and other webspaces are concerned.
func (m *Manager) awaitSlot(ctx context.Context, e *entry) (release func(), err error) {
	if err := e.activation.awaitBackoff(ctx); err != nil {
		return nil, err
	}
	// Of a boot that has not begun nothing is left once nobody waits for it any more. Else a crowd that comes and goes
	// keeps those who stay waiting behind it.
	release, err = m.bootSlot(ctx, e.name, e.activation.nobodyWaits())
	if errors.Is(err, errAbandoned) {
		return nil, err
	}
	if err != nil {
		return nil, &proxy.Failure{
			Reason: "Too many webspaces are starting at the moment.", RetryAfter: 5 * time.Second,
			Err: fmt.Errorf("no boot slot: %v: %w", err, errdefs.ErrResourceExhausted),
		}
	}
	return release, nil
}

// bootSlot waits for one of the slots of boots at a time, until abandoned is closed.
func (m *Manager) bootSlot(ctx context.Context, name string, abandoned <-chan struct{}) (release func(), err error) {
	m.tell(name, NoticeQueued, queuedMessage)
	select {
	case m.boots <- struct{}{}:
		return sync.OnceFunc(func() { <-m.boots }), nil
	case <-abandoned:
		return nil, errAbandoned
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// startLocked is the part of ensureRunning under the lock, which serialises it with stops, restarts and deletions: a
// request that comes while its webspace is being stopped waits here and then boots it again. again says that a start
// takes a slot, which the caller has to get first.
func (m *Manager) startLocked(ctx context.Context, e *entry, port int, slot bool, clock *bootClock) (at netip.AddrPort, booted, again bool, err error) {
	v, err := m.refresh(ctx, e.name)
	if err != nil {
		return at, false, false, err
	}
	if !v.routable() {
		return at, false, false, errNobody
	}
	var busy error
	if !v.runs() {
		if !slot {
			return at, false, true, nil
		}
		booted = true
		m.log.Info("booting", "webspace", e.name)
		m.tell(e.name, NoticeStarting, startingMessage)
		clock.enter(&clock.boot.Start, BootStart)
		start, cancel := context.WithTimeout(ctx, m.opts.StartTimeout)
		defer cancel()
		if err := m.runtime.Start(start, e.name); err != nil {
			if errdefs.IsNotFound(err) {
				return at, false, false, errNobody
			}
			if ctx.Err() != nil {
				return at, false, false, ctx.Err()
			}
			if !errdefs.IsConflict(err) {
				m.bootFailed(e, err)
				return at, false, false, e.activation.failure(err)
			}
			busy = err // with shutting itself down, say; what comes of it is seen below
		}
	}
	if booted {
		clock.enter(&clock.boot.Address, BootNoAddress)
	}
	address, err := m.awaitAddress(ctx, e)
	if busy != nil && err != nil {
		err = fmt.Errorf("%w: %w", err, busy)
	}
	return netip.AddrPortFrom(address, uint16(port)), booted, false, err
}

// awaitAddress reads the instance until it runs and has an address. With pinned addresses that is at once.
func (m *Manager) awaitAddress(ctx context.Context, e *entry) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, m.opts.AddressTimeout)
	defer cancel()
	for interval := 20 * time.Millisecond; ; interval = min(interval*2, 100*time.Millisecond) {
		v, err := m.refresh(ctx, e.name)
		switch {
		case errdefs.IsNotFound(err):
			return netip.Addr{}, err
		case err != nil: // an engine that is away for a moment is no reason to give up on a boot
		case v.status == StatusRunning && v.address.IsValid():
			return v.address, nil
		case v.status == StatusStopped || v.status == StatusFrozen || v.status == StatusError:
			return netip.Addr{}, errGone
		}
		if sleep(ctx, interval) != nil {
			if err == nil {
				err = errors.New("it has none")
			}
			return netip.Addr{}, &proxy.Failure{
				Reason: "This webspace has started, but it has no network address.", RetryAfter: 5 * time.Second,
				Err: fmt.Errorf("no address after %v: %v: %w", m.opts.AddressTimeout, err, errdefs.ErrUnavailable),
			}
		}
	}
}

// awaitReady probes until the endpoint takes connections. It returns errGone if the instance is no longer there.
func (m *Manager) awaitReady(ctx context.Context, e *entry, at netip.AddrPort, booted bool) error {
	a := &e.activation
	patience := m.patience(e, booted)
	probing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a.mu.Lock()
	if a.ports[int(at.Port())] != accepting { // else somebody else has just found out, and followers know
		m.tell(e.name, NoticeProbing, probingMessage(at))
	}
	a.mu.Unlock()
	started := time.Now()
	nextLook := started.Add(500 * time.Millisecond)
	for {
		a.mu.Lock()
		here, changed := a.endpoint == at.Addr(), a.changed
		a.mu.Unlock()
		if !here {
			return errGone
		}
		err := m.opts.Probe(probing, at)
		if err == nil {
			if a.setReadiness(at, accepting) {
				m.tell(e.name, NoticeReady, readyMessage(at))
				m.queue.add(e.name) // its route may now go straight there
			}
			return nil
		}
		if probing.Err() == nil {
			// Short enough that nobody notices, whatever the boot has taken until now.
			timer := time.NewTimer(min(max(time.Since(started)/50, 10*time.Millisecond), 100*time.Millisecond))
			select {
			case <-timer.C:
			case <-changed:
			case <-probing.Done():
			}
			timer.Stop()
		}
		// Events say when the instance ends; that they may be lost is why the truth is read now and then.
		if now := time.Now(); now.After(nextLook) || probing.Err() != nil {
			nextLook = now.Add(500 * time.Millisecond)
			v, err := m.refresh(ctx, e.name)
			switch {
			case errdefs.IsNotFound(err):
				return err
			case err == nil && (v.status != StatusRunning || v.address != at.Addr()):
				return errGone
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if probing.Err() != nil {
			if a.setReadiness(at, silent) {
				m.queue.add(e.name)
			}
			return &proxy.Failure{
				Reason:     fmt.Sprintf("This webspace is running, but nothing answers on its port %d.", at.Port()),
				RetryAfter: 5 * time.Second,
				Err:        fmt.Errorf("probe %s for %v: %w: %w", at, patience, err, errdefs.ErrFailedPrecondition),
			}
		}
	}
}

// patience is how long to wait until a port of a running instance takes connections.
func (m *Manager) patience(e *entry, booted bool) time.Duration {
	delay := min(m.index.look(e).record.Config.StartupDelay, m.opts.MaxStartupDelay)
	if !booted {
		e.activation.mu.Lock()
		delay -= time.Since(e.activation.since)
		e.activation.mu.Unlock()
	}
	// What has run for longer than that is not booting any more; a moment for a server that restarts is left.
	return max(delay, 300*time.Millisecond)
}

// dial is the default probe. While an instance brings its network up, packets to it vanish, and the kernel repeats a SYN
// after a second at the earliest: by then it may long be ready. So further tries are made while the first is pending. Each
// takes a descriptor, so that all but the first end with the third after them.
func dial(ctx context.Context, at netip.AddrPort) error {
	const limit, gap, pending = 300 * time.Millisecond, 10 * time.Millisecond, 4
	ctx, cancel := context.WithTimeout(ctx, limit)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	results := make(chan error)
	dialer := net.Dialer{KeepAlive: -1}
	try := func(ctx context.Context) {
		wg.Go(func() {
			conn, err := dialer.DialContext(ctx, "tcp", at.String())
			if err == nil {
				err = conn.Close()
			} else if timeout, ok := errors.AsType[net.Error](err); ctx.Err() != nil || ok && timeout.Timeout() {
				return // which is no answer
			}
			select {
			case results <- err:
			case <-ctx.Done():
			}
		})
	}
	try(ctx)
	more := time.NewTicker(gap)
	defer more.Stop()
	for {
		select {
		case err := <-results:
			return err // of the first that is answered: a refusal is an answer as well
		case <-ctx.Done():
			return ctx.Err()
		case <-more.C:
			one, end := context.WithTimeout(ctx, (pending-1)*gap)
			defer end()
			try(one)
		}
	}
}
