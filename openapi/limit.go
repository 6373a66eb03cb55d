package openapi

import (
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/time/rate"
)

// Limits bound what one user asks for. A negative number of requests a second stands for no limit.
type Limits struct {
	Rate  float64 // requests a second [20]
	Burst int     // at once [40]
	// Of operations that cost: creating, deleting, starting, stopping and running commands, say.
	ExpensiveRate  float64 // [1]
	ExpensiveBurst int     // [10]
}

func (l Limits) withDefaults() Limits {
	for field, value := range map[*float64]float64{&l.Rate: 20, &l.ExpensiveRate: 1} {
		if *field == 0 {
			*field = value
		} else if *field < 0 {
			*field = math.MaxFloat64 // rate.Inf
		}
	}
	if l.Burst <= 0 {
		l.Burst = 40
	}
	if l.ExpensiveBurst <= 0 {
		l.ExpensiveBurst = 10
	}
	return l
}

// expensive are the operations that cost, by their ID.
var expensive = map[string]bool{
	"createWebspace": true, "deleteWebspace": true, "start": true, "reboot": true, "shutdown": true, "sync": true,
	"addDomain": true, "exec": true,
}

// maxBuckets bounds how many users limiter remembers.
const maxBuckets = 10_000

// limiter counts what each asks for, users by their ID and those without a token by their address.
type limiter struct {
	limits Limits

	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	all, expensive *rate.Limiter
	used           time.Time
}

func newLimiter(limits Limits) *limiter {
	return &limiter{limits: limits.withDefaults(), buckets: make(map[string]*bucket)}
}

// visitor is what a client without a token is counted as: its address, or for IPv6 the network that one household has.
func visitor(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	address, bits := at.Addr().Unmap(), 32
	if address.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(address.WithZone(""), bits).Masked().String()
}

// take counts a request. The error says when to come again.
func (l *limiter) take(who, operation string) error {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[who]
	if b == nil {
		l.makeRoom(now)
		b = &bucket{
			all:       rate.NewLimiter(rate.Limit(l.limits.Rate), l.limits.Burst),
			expensive: rate.NewLimiter(rate.Limit(l.limits.ExpensiveRate), l.limits.ExpensiveBurst),
		}
		l.buckets[who] = b
	}
	b.used = now
	if err := spend(b.all, now); err != nil {
		return err
	}
	if expensive[operation] {
		return spend(b.expensive, now)
	}
	return nil
}

func spend(from *rate.Limiter, now time.Time) error {
	if from.AllowN(now, 1) {
		return nil
	}
	missing := 1 - from.TokensAt(now)
	wait := time.Duration(missing / float64(from.Limit()) * float64(time.Second))
	return tooMany{fmt.Errorf("too many requests; come again in a moment: %w", errdefs.ErrResourceExhausted), wait}
}

// makeRoom forgets who has asked for nothing for long enough to have everything again; if that is nobody, then any half.
func (l *limiter) makeRoom(now time.Time) {
	if len(l.buckets) < maxBuckets {
		return
	}
	for who, b := range l.buckets {
		if now.Sub(b.used) > time.Minute {
			delete(l.buckets, who)
		}
	}
	if len(l.buckets) < maxBuckets {
		return
	}
	for who := range l.buckets {
		if delete(l.buckets, who); len(l.buckets) <= maxBuckets/2 {
			return
		}
	}
}

// tooMany is an error that says when to come again.
type tooMany struct {
	error
	wait time.Duration
}

func (e tooMany) Unwrap() error { return e.error }

// setRetryAfter sets the header, in whole seconds.
func (e tooMany) setRetryAfter(h http.Header) {
	h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.wait.Seconds())))))
}
