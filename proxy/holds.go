package proxy

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// HoldLimits bound [Holds]. Zero means the default.
type HoldLimits struct {
	// Webspace is how many may wait for one webspace: 1024, which is about a tenth of the default Total, and never more
	// than a third of Total, so that no webspace crowds out the others.
	Webspace int
	// Source is how many may wait from one client: 64. A client is an IPv4 address, or an IPv6 network of 64 bits,
	// because whoever has one address there has all of them.
	Source int
	// Total is how many may wait at all: 10,000.
	Total int
	// Wakes is how many webspaces one network may wake in a row: 20; negative: any number. A network is an IPv4 one of
	// 24 bits or an IPv6 one of 56, which is what one customer has. Whoever is the first to wait for a webspace wakes it,
	// unless it runs; all who join in the wait do not.
	Wakes int
	// WakeInterval is how long it takes until a network may wake one more: 10 seconds.
	WakeInterval time.Duration
	// Exempt are addresses that count in Webspace and Total only: proxies in front, which connect on behalf of many clients.
	Exempt []netip.Prefix
}

// Holds counts the requests and connections that wait for a target to take connections, and refuses those that are too
// many: at once, since a queue without an end helps nobody in it. One Holds may be shared by everything that holds.
//
// It is safe for concurrent use.
type Holds struct {
	limits HoldLimits

	mu        sync.Mutex
	stats     HoldStats
	webspaces map[string]int
	sources   map[netip.Prefix]int
	wakes     wakes
}

// HoldStats say how full [Holds] are.
type HoldStats struct {
	Held      int // waiting now
	Webspaces int // that are waited for now
	Sources   int // that wait now

	Ended  uint64        // that have waited, since the start
	Waited time.Duration // all of those together

	// How many were refused since the start, by the limit that they hit.
	RefusedWebspace, RefusedSource, RefusedTotal uint64
	// RefusedWakes is how many were refused because their network has woken too many webspaces.
	RefusedWakes uint64
}

// NewHolds returns Holds in which nobody waits. nil limits are the defaults.
func NewHolds(limits *HoldLimits) *Holds {
	h := &Holds{webspaces: map[string]int{}, sources: map[netip.Prefix]int{}}
	if limits != nil {
		h.limits = *limits
	}
	l := &h.limits
	if l.Total <= 0 {
		l.Total = 10_000
	}
	if l.Webspace <= 0 {
		l.Webspace = max(min(1024, l.Total/3), 1)
	}
	if l.Source <= 0 {
		l.Source = 64
	}
	if l.Wakes == 0 {
		l.Wakes = 20
	}
	if l.WakeInterval <= 0 {
		l.WakeInterval = 10 * time.Second
	}
	h.wakes = newWakes(l.Wakes, l.WakeInterval)
	return h
}

// Acquire lets one more wait for a webspace that does not run, until release is called; calling it again does nothing. It
// never blocks. The error is a [*Failure] of class ResourceExhausted.
func (h *Holds) Acquire(webspace string, source netip.Addr) (release func(), err error) {
	return h.acquire(webspace, source, false)
}

// hold is Acquire for a webspace of which activator may know that it runs.
func (h *Holds) hold(activator Activator, webspace string, source netip.Addr) (release func(), err error) {
	runner, ok := activator.(Runner)
	return h.acquire(webspace, source, ok && runner.Runs(webspace))
}

func (h *Holds) acquire(webspace string, source netip.Addr, runs bool) (release func(), err error) {
	network, exempt := sourceNetwork(source), peers(h.limits.Exempt).trust(source.Unmap())
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stats.Held >= h.limits.Total:
		h.stats.RefusedTotal++
		return nil, tooMany("Too many requests are waiting at the moment.", "total", h.limits.Total)
	case h.webspaces[webspace] >= h.limits.Webspace:
		h.stats.RefusedWebspace++
		return nil, tooMany("Too many requests are waiting for this webspace to start.", "webspace", h.limits.Webspace)
	case !exempt && h.sources[network] >= h.limits.Source:
		h.stats.RefusedSource++
		return nil, tooMany("Too many requests from your address are waiting.", "source", h.limits.Source)
	}
	began := time.Now()
	if !runs && !exempt && h.webspaces[webspace] == 0 && h.limits.Wakes > 0 {
		if wait := h.wakes.take(source, began); wait > 0 {
			h.stats.RefusedWakes++
			return nil, &Failure{
				Reason: "Too many webspaces had to be started for your network.", RetryAfter: wait,
				Err: fmt.Errorf("%d wakes in a row from %s: %w", h.limits.Wakes, source, errdefs.ErrResourceExhausted),
			}
		}
	}
	h.stats.Held++
	h.webspaces[webspace]++
	h.sources[network]++
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.stats.Held--
		h.stats.Ended++
		h.stats.Waited += time.Since(began)
		decrement(h.webspaces, webspace)
		decrement(h.sources, network)
	}), nil
}

// Stats returns the counters.
func (h *Holds) Stats() HoldStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	stats := h.stats
	stats.Webspaces, stats.Sources = len(h.webspaces), len(h.sources)
	return stats
}

func tooMany(reason, limit string, n int) error {
	return &Failure{
		Reason:     reason,
		RetryAfter: 5 * time.Second,
		Err:        fmt.Errorf("%d, the limit per %s: %w", n, limit, errdefs.ErrResourceExhausted),
	}
}

// decrement forgets what has come down to zero: the keys come from outside, and there is no end to them.
func decrement[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

// sourceNetwork is what counts as one client.
func sourceNetwork(source netip.Addr) netip.Prefix { return networkOf(source, 32, 64) }

// networkOf returns the network of so many bits that an address is in. Unknown clients, which have the zero address, are
// all in the zero network.
func networkOf(source netip.Addr, bits4, bits6 int) netip.Prefix {
	source = source.Unmap().WithZone("")
	bits := bits4
	if source.Is6() {
		bits = bits6
	}
	network, _ := source.Prefix(bits)
	return network
}
