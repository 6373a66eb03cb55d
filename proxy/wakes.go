package proxy

import (
	"net/netip"
	"time"
)

// maxWakers bounds the networks that are remembered, as there is no end to those of IPv6.
const maxWakers = 1 << 14

// wakes are the token buckets out of which networks wake webspaces. A bucket is no more than the time when it is full
// again, and one that is full is forgotten. It is not safe for concurrent use.
type wakes struct {
	burst   int
	refill  time.Duration // until there is one token more
	full    map[netip.Prefix]time.Time
	cleared time.Time // when the full ones were forgotten
}

func newWakes(burst int, refill time.Duration) wakes {
	return wakes{burst: burst, refill: refill, full: map[netip.Prefix]time.Time{}}
}

// take takes a token from the bucket of source. If there is none, it returns how long it takes until there is.
func (w *wakes) take(source netip.Addr, now time.Time) (wait time.Duration) {
	network := networkOf(source, 24, 56)
	full := w.full[network]
	if full.Before(now) {
		full = now
	}
	full = full.Add(w.refill)
	if wait = full.Sub(now) - time.Duration(w.burst)*w.refill; wait > 0 {
		return wait
	}
	w.full[network] = full
	w.forget(now)
	return 0
}

// forget keeps the work for it small, and the buckets few. Where so many networks come that they are too many, a limit per
// network protects nothing any more, and any of them is forgotten.
func (w *wakes) forget(now time.Time) {
	if now.Sub(w.cleared) >= w.refill {
		w.cleared = now
		for network, full := range w.full {
			if !full.After(now) {
				delete(w.full, network)
			}
		}
	}
	for network := range w.full {
		if len(w.full) <= maxWakers {
			return
		}
		delete(w.full, network)
	}
}
