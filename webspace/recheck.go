package webspace

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// domainCheck is what the looks at the proof of a custom domain have found since it was last there. Domains change hands:
// whoever registers one next must not find it taken by a webspace whose owner can not prove it any more.
type domainCheck struct {
	Failures int       `json:"failures"` // in a row
	Since    time.Time `json:"since"`    // of the first of them
	Lapsed   bool      `json:"lapsed,omitempty"`
}

// lapse is how many failures there have to be, at the least.
const lapse = 3

func (c domainCheck) failed(now time.Time, grace time.Duration) domainCheck {
	if c.Failures++; c.Failures == 1 {
		c.Since = now.UTC().Truncate(time.Second)
	}
	c.Lapsed = c.Lapsed || c.Failures >= lapse && now.Sub(c.Since) >= grace
	return c
}

// recheckDomains looks at the proof of each custom domain once in DomainRecheck, until ctx ends.
func (m *Manager) recheckDomains(ctx context.Context) {
	interval := m.opts.DomainRecheck
	if m.opts.VerifyDomain == nil || interval < 0 {
		return
	}
	// A domain has its time in each interval, and nothing to remember is lost with a restart.
	for last := time.Now(); sleep(ctx, interval/100) == nil; {
		now := time.Now()
		var checks errgroup.Group
		checks.SetLimit(4)
		for _, e := range m.index.all() {
			v := m.index.look(e)
			if !v.routable() {
				continue
			}
			for _, domain := range v.record.Domains {
				if comesUp(domain, last, now, interval) {
					checks.Go(func() error { m.recheckDomain(ctx, e, domain); return nil })
				}
			}
		}
		_ = checks.Wait()
		last = now
	}
}

// comesUp reports whether the time of a domain, which comes once in each interval, is in (from, to].
func comesUp(domain string, from, to time.Time, interval time.Duration) bool {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(domain))
	offset := int64(hash.Sum64() % uint64(interval))
	return (to.UnixNano()-offset)/int64(interval) > (from.UnixNano()-offset)/int64(interval)
}

// errUnchanged ends a change of a record that is not to be written.
var errUnchanged = errors.New("nothing to change")

func (m *Manager) recheckDomain(ctx context.Context, e *entry, domain string) {
	verifying, cancel := context.WithTimeout(ctx, 30*time.Second)
	missing := m.opts.VerifyDomain(verifying, e.user, domain)
	cancel()
	if ctx.Err() != nil || missing == nil && m.index.look(e).record.Checks[domain] == (domainCheck{}) {
		return
	}
	writing, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := m.modify(writing, e.user, func(r *record) error {
		check, failing := r.Checks[domain]
		if !slices.Contains(r.Domains, domain) {
			return errUnchanged
		}
		if missing != nil {
			if check.Lapsed {
				return errUnchanged
			}
			if r.Checks == nil {
				r.Checks = make(map[string]domainCheck)
			}
			r.Checks[domain] = check.failed(time.Now(), m.opts.DomainGrace)
			return nil
		}
		// Whoever has proven a domain meanwhile keeps it, as they would against anybody else.
		if owner := m.index.ownerOf(domain); !failing || check.Lapsed && owner != nil && owner != e {
			return errUnchanged
		}
		delete(r.Checks, domain)
		return nil
	})
	switch {
	case errors.Is(err, errUnchanged):
	case err != nil && ctx.Err() == nil:
		m.log.Warn("what was found out about a custom domain could not be kept", "webspace", e.name, "domain", domain, "error", err)
	case missing != nil:
		m.log.Info("the proof of a custom domain is not there", "webspace", e.name, "domain", domain, "error", missing)
	default:
		m.log.Info("the proof of a custom domain is there again", "webspace", e.name, "domain", domain)
	}
}

// domainProblems says which custom domains of a webspace are not, or will soon not be, routed for want of a proof.
func (m *Manager) domainProblems(v view) (problems []string) {
	const day = "2 January 2006"
	for _, domain := range v.record.Domains {
		check, ok := v.record.Checks[domain]
		switch {
		case check.Lapsed:
			problems = append(problems, fmt.Sprintf(
				"%s is not routed: the DNS record that proves it to be yours is missing since %s; set it, and add the domain again",
				domain, check.Since.Format(day)))
		case ok:
			problems = append(problems, fmt.Sprintf(
				"the DNS record that proves %s to be yours is missing since %s; without it the domain will not be routed after %s",
				domain, check.Since.Format(day), check.Since.Add(m.opts.DomainGrace).Format(day)))
		}
	}
	return problems
}
