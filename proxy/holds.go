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
	// Webspace is how many may wait for one webspace: 1024, about a tenth of Total, so that no webspace crowds out
	// the others.
	Webspace int
	// Source is how many may wait from one client: 64. A client is an IPv4 address, or an IPv6 network of 64 bits,
	// because whoever has one address there has all of them.
	Source int
	// Total is how many may wait at all: 10,000.
	Total int
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
}

// NewHolds returns Holds in which nobody waits. nil limits are the defaults.
func NewHolds(limits *HoldLimits) *Holds {
	h := &Holds{webspaces: map[string]int{}, sources: map[netip.Prefix]int{}}
	if limits != nil {
		h.limits = *limits
	}
	for limit, fallback := range map[*int]int{&h.limits.Webspace: 1024, &h.limits.Source: 64, &h.limits.Total: 10_000} {
		if *limit <= 0 {
			*limit = fallback
		}
	}
	return h
}

// Acquire lets one more wait for a webspace, until release is called; calling it again does nothing. It never blocks.
// The error is a [*Failure] of class ResourceExhausted.
func (h *Holds) Acquire(webspace string, source netip.Addr) (release func(), err error) {
	network := sourceNetwork(source)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stats.Held >= h.limits.Total:
		h.stats.RefusedTotal++
		return nil, tooMany("Too many requests are waiting at the moment.", "total", h.limits.Total)
	case h.webspaces[webspace] >= h.limits.Webspace:
		h.stats.RefusedWebspace++
		return nil, tooMany("Too many requests are waiting for this webspace to start.", "webspace", h.limits.Webspace)
	case h.sources[network] >= h.limits.Source:
		h.stats.RefusedSource++
		return nil, tooMany("Too many requests from your address are waiting.", "source", h.limits.Source)
	}
	began := time.Now()
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

func sourceNetwork(source netip.Addr) netip.Prefix {
	source = source.Unmap().WithZone("")
	bits := 32
	if source.Is6() {
		bits = 64
	}
	network, _ := source.Prefix(bits) // the zero address has the zero network: unknown clients are one source
	return network
}
