package acme

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/netsoc/webspaced/provider"
)

const (
	workers        = 4               // attempts at a time
	attemptTimeout = 5 * time.Minute // of one attempt
	advicePeriod   = 6 * time.Hour   // between questions whether to renew early
	maxWait        = 6 * time.Hour   // between attempts
	maxOutage      = 30 * time.Minute
	minute         = "2006-01-02 15:04 UTC"
	failuresHour   = 5 // then it stops for the rest of the hour
)

// waits follow the failures of a host, the last one for ever.
var waits = [...]time.Duration{1, 2, 2, 5, 10, 20, 40, 80, 160, 320, 360} // minutes

func backOff(failures int) time.Duration {
	return waits[min(max(failures, 1), len(waits))-1] * time.Minute
}

// authority is who signs certificates.
type authority interface {
	// obtain orders a certificate, and reports whether the authority took the order. replaces may be nil.
	obtain(ctx context.Context, host provider.Host, way int, replaces *x509.Certificate) (chain, key string, ordered bool, err error)
	// advice returns when the authority wants a certificate renewed; zero if it says nothing.
	advice(ctx context.Context, leaf *x509.Certificate) (time.Time, error)
}

// run does what is due, until the issuer is closed.
func (i *Issuer) run() {
	done := make(chan provider.Host, workers)
	running := 0
	defer func() {
		for ; running > 0; running-- {
			i.release(<-done)
		}
	}()
	for i.ctx.Err() == nil {
		due, next := i.plan(time.Now(), workers-running)
		for _, name := range due {
			running++
			i.tasks.Go(func() {
				defer func() { done <- name }()
				i.attend(name)
			})
		}
		timer := time.NewTimer(min(max(time.Until(next), time.Second/10), advicePeriod))
		select {
		case <-i.ctx.Done():
		case <-i.wake:
		case <-timer.C:
		case name := <-done:
			running--
			i.release(name)
		}
		timer.Stop()
	}
}

// plan returns hosts that need something now, at most free, marked busy, and when the next one will.
func (i *Issuer) plan(now time.Time, free int) (due []provider.Host, next time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	next = now.Add(advicePeriod)
	if free == 0 {
		return nil, next // it is called again when an attempt ends
	}
	budget := i.budget(now)
	type task struct {
		name provider.Host
		at   time.Time
	}
	var ready []task
	for name, h := range i.hosts {
		if h.busy {
			continue
		}
		at := h.due(now)
		if at.IsZero() {
			continue
		}
		if h.needsOrder(now) {
			wait, why := budget.wait(h.record)
			at = later(at, wait)
			if h.held = ""; why != "" {
				h.held = fmt.Sprintf("%s; next attempt %s", why, wait.UTC().Format(minute))
			}
		}
		if at.After(now) {
			next = earlier(next, at)
			continue
		}
		ready = append(ready, task{name, at})
	}
	slices.SortFunc(ready, func(a, b task) int { return cmp.Or(a.at.Compare(b.at), a.name.Compare(b.name)) })
	for _, t := range ready {
		h := i.hosts[t.name]
		if len(due) == free {
			return due, next
		}
		if h.needsOrder(now) {
			if wait, _ := budget.wait(h.record); wait.After(now) {
				next = earlier(next, wait)
				continue
			}
			budget.spend(h.Owner, now)
			h.spends = true
		}
		h.busy = true
		due = append(due, t.name)
	}
	return due, next
}

func (i *Issuer) release(name provider.Host) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if h := i.hosts[name]; h != nil {
		h.busy, h.spends = false, false
	}
}

// needsOrder reports whether a certificate is to be ordered, rather than one that is there to be looked after.
func (h *host) needsOrder(now time.Time) bool {
	return h.Owner != "" && (h.served == nil || !now.Before(h.Renew))
}

// due returns when h needs something: an order, advice, or to be forgotten. Zero: never.
func (h *host) due(now time.Time) time.Time {
	switch {
	case h.Owner == "":
		at := now
		if h.served != nil {
			at = h.served.Leaf.NotAfter
		}
		if n := len(h.Attempts); n > 0 {
			at = later(at, h.Attempts[n-1].At.Add(day+time.Second))
		}
		return at
	case h.needsOrder(now):
		return later(h.Next, time.Unix(1, 0))
	default:
		return earlier(h.Renew, later(h.asked, time.Unix(1, 0)))
	}
}

// attend does for a host what it needs.
func (i *Issuer) attend(name provider.Host) {
	i.mu.Lock()
	h := i.hosts[name]
	if h == nil {
		i.mu.Unlock()
		return
	}
	now := time.Now()
	forgotten, order, r := h.Owner == "", h.needsOrder(now), h.record.clone()
	var leaf *x509.Certificate
	if h.served != nil {
		leaf = h.served.Leaf
	}
	i.mu.Unlock()

	var err error
	switch {
	case forgotten:
		i.release(name) // for update to forget it
		err = i.update(name, func(*record) {})
	case order:
		err = i.obtain(r, leaf)
	case leaf != nil:
		err = i.ask(name, leaf)
	}
	if err != nil && i.ctx.Err() == nil {
		i.opts.Logger.Warn("certificate", "host", name.String(), "error", err)
	}
}

// ask asks the authority when it wants the certificate renewed, which is at once when it has revoked it.
func (i *Issuer) ask(name provider.Host, leaf *x509.Certificate) error {
	i.mu.Lock()
	if h := i.hosts[name]; h != nil {
		h.asked = time.Now().Add(advicePeriod)
	}
	i.mu.Unlock()
	ctx, cancel := context.WithTimeout(i.ctx, time.Minute)
	defer cancel()
	if err := i.pace.Wait(ctx); err != nil {
		return err
	}
	at, err := i.authority.advice(ctx, leaf)
	if err != nil || at.IsZero() || !at.Before(renewal(leaf)) {
		return err
	}
	i.mu.Lock()
	r := i.hosts[name]
	known := r != nil && !at.Before(r.Renew)
	i.mu.Unlock()
	if known {
		return nil
	}
	return i.update(name, func(r *record) { r.Renew = at })
}

// obtain makes one attempt. It is written down before it is made: who kills the daemon again and again gains none.
func (i *Issuer) obtain(r record, replaces *x509.Certificate) error {
	ctx, cancel := context.WithTimeout(i.ctx, attemptTimeout)
	defer cancel()
	if err := i.pace.Wait(ctx); err != nil {
		return err
	}
	at := time.Now()
	if err := i.update(r.host, func(r *record) { r.Attempts = append(r.Attempts, attempt{At: at, Owner: r.Owner}) }); err != nil {
		i.postpone(r.host, err)
		return err
	}
	i.mu.Lock()
	if h := i.hosts[r.host]; h != nil {
		h.spends = false
	}
	i.mu.Unlock()
	hint := &retryHint{}
	chain, key, ordered, err := i.authority.obtain(context.WithValue(ctx, hintKey{}, hint), r.host, r.Failures, replaces)
	result := func(r *record) {
		n := slices.IndexFunc(r.Attempts, func(a attempt) bool { return a.At.Equal(at) })
		if n >= 0 && !ordered {
			r.Attempts = slices.Delete(r.Attempts, n, n+1)
		}
		if err != nil {
			r.fail(err, ordered, hint.get())
			return
		}
		if n >= 0 {
			r.Attempts[n].Issued = true
		}
		r.Chain, r.Key, r.Problem, r.Failures, r.Next = chain, key, "", 0, time.Time{}
		r.Renew = time.Time{}
		if pair := r.pair(); pair != nil {
			r.Renew = renewal(pair.Leaf)
		}
	}
	if i.ctx.Err() != nil && err != nil {
		return nil // closed: it is no failure of the host
	}
	if saveErr := i.update(r.host, result); saveErr != nil {
		if err != nil {
			i.postpone(r.host, err)
			return err
		}
		// The certificate was paid for: better in memory alone than lost.
		i.mu.Lock()
		if h := i.hosts[r.host]; h != nil {
			result(&h.record)
			h.served = h.pair()
		}
		i.mu.Unlock()
		i.tell(r.host)
		return fmt.Errorf("the certificate can not be kept: %w", saveErr)
	}
	i.tell(r.host)
	if err == nil {
		i.opts.Logger.Info("certificate obtained", "host", r.Host, "owner", r.Owner)
	}
	return err
}

// postpone keeps an attempt that can not even be written down from being made again at once.
func (i *Issuer) postpone(name provider.Host, err error) {
	i.mu.Lock()
	if h := i.hosts[name]; h != nil {
		h.record = h.record.clone()
		h.fail(err, false, time.Time{})
	}
	i.mu.Unlock()
	i.tell(name)
}

func (r *record) fail(err error, ordered bool, notBefore time.Time) {
	now := time.Now()
	r.Failures++
	wait := backOff(r.Failures)
	if !ordered {
		wait = min(wait, maxOutage)
	}
	r.Next = later(now.Add(wait), notBefore)
	r.prune(now)
	r.Problem = oneLine(fmt.Sprintf("%s; next attempt %s", explain(err, r.Host), r.Next.UTC().Format(minute)))
}

// renewal is when a third of the certificate's life is left.
func renewal(leaf *x509.Certificate) time.Time {
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// budget is what may still be ordered of the authority.
type budget struct {
	opts    Options
	now     time.Time
	owners  map[string][]time.Time
	account []time.Time
}

func (i *Issuer) budget(now time.Time) *budget {
	b := &budget{opts: i.opts, now: now, owners: map[string][]time.Time{}}
	for h := range maps.Values(i.hosts) {
		for _, a := range h.Attempts {
			b.owners[a.Owner] = append(b.owners[a.Owner], a.At)
			b.account = append(b.account, a.At)
		}
		if h.spends {
			b.spend(h.Owner, now)
		}
	}
	for owner := range b.owners {
		slices.SortFunc(b.owners[owner], time.Time.Compare)
	}
	slices.SortFunc(b.account, time.Time.Compare)
	return b
}

func (b *budget) spend(owner string, at time.Time) {
	b.owners[owner] = append(b.owners[owner], at)
	b.account = append(b.account, at)
}

// wait returns when the record's host may be ordered, and what forbids it until then.
func (b *budget) wait(r record) (at time.Time, why string) {
	var issued, failed []time.Time
	for _, a := range r.Attempts {
		if a.Issued {
			issued = append(issued, a.At)
		} else {
			failed = append(failed, a.At)
		}
	}
	for _, limit := range []struct {
		times  []time.Time
		most   int
		period time.Duration
		why    string
	}{
		{issued, b.opts.HostOrders, day, "the host has had its certificates for today"},
		{failed, failuresHour, time.Hour, "too many attempts have failed within an hour"},
		{b.owners[r.Owner], b.opts.OwnerOrders, day, "its owner has had the certificates for today"},
		{b.account, b.opts.AccountOrders, 3 * time.Hour, "many certificates are being obtained"},
	} {
		if n := len(limit.times); n >= limit.most {
			if free := limit.times[n-limit.most].Add(limit.period); free.After(b.now) && free.After(at) {
				at, why = free, limit.why
			}
		}
	}
	return at, why
}
