package webspace

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
)

// Observer is told what the [Manager] has done and how long it took, for metrics. Each function may be nil. They are called
// from several goroutines at a time, on the way of those who wait, and must not block.
type Observer struct {
	// Boot is told of each try to boot a webspace, once it has ended.
	Boot func(Boot)
	// FirstByte is told how long it took from the end of a boot until the first request that was held for it had the
	// beginning of its answer. Connections to forwarded ports are not looked into: boots for them have none.
	FirstByte func(time.Duration)
	// Reconciled is told of each webspace that was reconciled: how long after it was due, and how long that took.
	Reconciled func(waited, took time.Duration, err error)
	// Synced is told of each full read of the runtime and the provider.
	Synced func(took time.Duration, err error)
}

// Boot is one try to boot a webspace. Its phases follow each other without a gap; what was not reached is zero.
type Boot struct {
	Queue   time.Duration // until there was a boot slot and nothing else at work on the webspace
	Start   time.Duration // of the instance, by the runtime
	Address time.Duration // until the instance had an address
	Probe   time.Duration // until the port took connections
	Result  BootResult
}

// BootResult is how a [Boot] ended.
type BootResult string

// The results of boots.
const (
	BootReady     BootResult = "ready"      // the port takes connections
	BootNoSlot    BootResult = "no_slot"    // too many others were booting, or the last one failed a moment ago
	BootStart     BootResult = "start"      // the runtime could not start the instance
	BootNoAddress BootResult = "no_address" // the instance got none
	BootSilent    BootResult = "silent"     // nothing took connections on the port
	BootGone      BootResult = "gone"       // the instance was stopped or deleted meanwhile
	BootCanceled  BootResult = "canceled"   // the Manager was closed
)

// BootResults returns all results that there are.
func BootResults() []BootResult {
	return []BootResult{BootReady, BootNoSlot, BootStart, BootNoAddress, BootSilent, BootGone, BootCanceled}
}

// bootClock measures the phases of a boot. Its zero value is that of a flight that has not started anything.
type bootClock struct {
	boot   Boot
	last   time.Time      // the end of the last phase
	phase  *time.Duration // under way
	failed BootResult     // what it means if the boot ends here
}

// enter ends the phase under way and begins another.
func (c *bootClock) enter(phase *time.Duration, failed BootResult) {
	now := time.Now()
	if c.phase != nil {
		*c.phase += now.Sub(c.last)
	}
	c.last, c.phase, c.failed = now, phase, failed
}

// bootEnded reports a boot, if the flight came to need one.
func (m *Manager) bootEnded(ctx context.Context, c *bootClock, err error) {
	if c.phase == nil {
		return
	}
	c.enter(nil, c.failed)
	switch {
	case err == nil:
		c.boot.Result = BootReady
	case errors.Is(err, errAbandoned), errors.Is(ctx.Err(), context.Canceled):
		c.boot.Result = BootCanceled
	case errors.Is(err, errGone), errdefs.IsNotFound(err):
		c.boot.Result = BootGone
	default:
		c.boot.Result = c.failed
	}
	if observe := m.opts.Observer.Boot; observe != nil {
		observe(c.boot)
	}
}

// firstByte returns what the first who is handed an endpoint after a boot calls for the first byte of its answer; nil for
// everybody else. a.mu is held.
func (m *Manager) firstByte(a *activation) func() {
	ready := a.bootedAt
	if ready.IsZero() {
		return nil
	}
	a.bootedAt = time.Time{}
	if time.Since(ready) > time.Second {
		return nil // whoever waited has left, and this is somebody else
	}
	return func() { m.opts.Observer.FirstByte(time.Since(ready)) }
}

// Stats say what a [Manager] knows and has to do at the moment.
type Stats struct {
	Webspaces   map[Status]int // by the status of their instances
	Quarantined int            // of those, with a record that makes no sense
	Routes      int            // that stand in the provider's store
	Reconciling int            // webspaces that wait to be reconciled, or are
	Probing     int            // webspaces whose port is looked at, or waits to be, for the sake of their route
	Booting     int            // boot slots that are taken
	BootSlots   int            // that there are

	Certificates        int // that are ordered at the issuer
	CertificateProblems int // of those, with a problem
	Domains             int // custom domains
	DomainsUnproven     int // of those, whose proof was missing when it was last looked at
	DomainsLapsed       int // of those, that are not routed for want of one
}

// Stats asks nobody.
func (m *Manager) Stats() Stats {
	stats := Stats{
		Reconciling: m.queue.len(), Probing: m.probes.len(), Routes: m.routes.len(),
		Booting: len(m.boots), BootSlots: cap(m.boots),
	}
	m.index.count(&stats)
	stats.Certificates, stats.CertificateProblems = m.certificates.count()
	return stats
}

func (x *index) count(stats *Stats) {
	stats.Webspaces = make(map[Status]int)
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.entries {
		if !e.known {
			continue
		}
		stats.Webspaces[e.status]++
		if e.bad != nil {
			stats.Quarantined++
		}
		stats.Domains += len(e.record.Domains)
		for _, check := range e.record.Checks {
			stats.DomainsUnproven++
			if check.Lapsed {
				stats.DomainsLapsed++
			}
		}
	}
}

func (r *routes) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.current)
}
