package webspace_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// proofs are the domains that users can prove at the moment.
type proofs struct {
	mu     sync.Mutex
	owners map[string][]identity.UserID
	asked  map[string]int
}

func (p *proofs) set(domain string, owners ...identity.UserID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owners[domain] = owners
}

func (p *proofs) verify(_ context.Context, user identity.UserID, domain string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[domain]++
	for _, owner := range p.owners[domain] {
		if owner == user {
			return nil
		}
	}
	return fmt.Errorf("no proof of %s: %w", domain, errdefs.ErrInvalidArgument)
}

func (p *proofs) counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.asked)
}

func newProvenWorld(t *testing.T) (*world, *proofs) {
	p := &proofs{owners: make(map[string][]identity.UserID), asked: make(map[string]int)}
	w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.VerifyDomain = p.verify })
	w.create(1000)
	w.create(1001)
	return w, p
}

const domain = "shop.example.org"

func TestProofsAreLookedAtDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := newProvenWorld(t)
		for n := range 5 {
			name := fmt.Sprintf("d%d.example.org", n)
			p.set(name, 1000)
			require.NoError(t, w.AddDomain(t.Context(), 1000, name))
		}
		revision := w.instance("ws-u1000").Revision
		restarted := 0
		// Restarts, however many, neither keep a domain from its turn nor give it another one.
		for range 10 * 4 {
			time.Sleep(6 * time.Hour)
			w.stop()
			w.start()
			restarted++
		}
		w.settled()
		for name, n := range p.counts() {
			require.InDelta(t, 11, n, 1, name) // with the one when it was added
		}
		require.Equal(t, revision, w.instance("ws-u1000").Revision, "while all is well nothing is written")
		require.Equal(t, 40, restarted)
	})
}

func TestDomainLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := newProvenWorld(t)
		p.set(domain, 1000)
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		w.settled()
		routed := func() bool {
			_, err := w.Route(domain)
			route, _ := w.provider.Route("ws-u1000")
			require.Equal(t, err == nil, len(route.Hosts) == 2)
			return err == nil
		}
		require.True(t, routed())

		// A day or two without the record are no reason.
		p.set(domain)
		time.Sleep(49 * time.Hour)
		require.True(t, routed())
		require.Contains(t, w.summary(1000).Problem, "the DNS record that proves "+domain+" to be yours is missing since")
		p.set(domain, 1000)
		time.Sleep(25 * time.Hour)
		require.Empty(t, w.summary(1000).Problem)

		// Three days are, and nobody else had it meanwhile.
		domains := func() []int {
			stats := w.Stats()
			return []int{stats.Domains, stats.DomainsUnproven, stats.DomainsLapsed}
		}
		require.Equal(t, []int{1, 0, 0}, domains())
		p.set(domain, 1001)
		time.Sleep(70 * time.Hour)
		require.True(t, routed())
		require.Equal(t, []int{1, 1, 0}, domains())
		require.True(t, errdefs.IsAlreadyExists(w.AddDomain(t.Context(), 1001, domain)))
		time.Sleep(28 * time.Hour)
		require.False(t, routed())
		require.Contains(t, w.summary(1000).Problem, domain+" is not routed")
		require.Equal(t, []int{1, 1, 1}, domains())
		w.stop()
		w.start() // it is remembered
		w.settled()
		require.False(t, routed())
		got, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, []string{domain}, got.Domains)

		// Now whoever proves it has it, and keeps it.
		require.True(t, errdefs.IsInvalidArgument(w.AddDomain(t.Context(), 1000, domain)))
		require.NoError(t, w.AddDomain(t.Context(), 1001, domain))
		p.set(domain, 1000, 1001)
		time.Sleep(25 * time.Hour)
		target, err := w.Route(domain)
		require.NoError(t, err)
		require.Equal(t, "ws-u1001", target.Webspace)
		require.True(t, errdefs.IsAlreadyExists(w.AddDomain(t.Context(), 1000, domain)))
		require.NoError(t, w.RemoveDomain(t.Context(), 1001, domain))
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		w.settled()
		require.True(t, routed())
		require.Empty(t, w.summary(1000).Problem)
		require.NoError(t, w.RemoveDomain(t.Context(), 1000, domain))
	})
}

// A proof that comes back by itself is enough, as long as nobody else has the domain.
func TestLapsedDomainComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := newProvenWorld(t)
		p.set(domain, 1000)
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		p.set(domain)
		time.Sleep(100 * time.Hour)
		_, err := w.Route(domain)
		require.True(t, errdefs.IsNotFound(err))
		written := w.instance("ws-u1000").Revision
		time.Sleep(100 * time.Hour)
		require.Equal(t, written, w.instance("ws-u1000").Revision, "there is no more to say")
		p.set(domain, 1000)
		time.Sleep(25 * time.Hour)
		_, err = w.Route(domain)
		require.NoError(t, err)
		require.Empty(t, w.summary(1000).Problem)
		require.NotContains(t, string(w.instance("ws-u1000").Record), "domainChecks")
	})
}
