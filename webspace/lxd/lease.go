package lxd

import (
	"context"
	"fmt"
	"time"
)

// leaseAge is how long the leases of a network are good for. To list them the engine looks at every instance, which is too
// much for each event and each look at one that boots.
const leaseAge = time.Second

// reading reads the leases of a network, for all who ask meanwhile and a little later.
type reading struct {
	network string
	begun   time.Time
	waiting int // callers; when the last one leaves, the request is cancelled
	cancel  context.CancelFunc

	done   chan struct{} // closed when the following is set
	leases []lease
	err    error
}

// fresh says whether f is good for a caller who comes now.
func (f *reading) fresh(network string) bool {
	if f == nil || f.network != network {
		return false
	}
	select {
	case <-f.done:
		return f.err == nil && time.Since(f.begun) < leaseAge
	default:
		return true
	}
}

// recentLeases returns the addresses that are in use on a network, or were so a moment ago.
func (r *Runtime) recentLeases(ctx context.Context, network string) ([]lease, error) {
	r.mu.Lock()
	f := r.reading
	if !f.fresh(network) {
		var run context.Context
		f = &reading{network: network, begun: time.Now(), done: make(chan struct{})}
		run, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		r.reading = f
		go func() { // its owners are those who wait for it
			defer close(f.done)
			defer f.cancel()
			f.leases, f.err = r.leases(run, network)
		}()
	}
	f.waiting++
	r.mu.Unlock()
	defer r.leave(f)
	select {
	case <-f.done:
		return f.leases, f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("lxd: %w", ctx.Err())
	}
}

// leave ends a caller's part in a reading, and with the last one's the reading.
func (r *Runtime) leave(f *reading) {
	r.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	select {
	case <-f.done:
		last = false // it is over, and good for others yet to come
	default:
		if last && r.reading == f {
			r.reading = nil
		}
	}
	r.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}
