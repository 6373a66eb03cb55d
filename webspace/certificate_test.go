package webspace_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// issuer remembers orders as a cluster would, and hands out references to secrets once it has issued.
type issuer struct {
	mu      sync.Mutex
	orders  map[provider.Host]string
	issued  map[provider.Host]bool
	problem map[provider.Host]string
	err     error
	calls   int // that changed something or failed
	changed func(provider.Host)
}

func newIssuer() *issuer {
	return &issuer{orders: map[provider.Host]string{}, issued: map[provider.Host]bool{}, problem: map[provider.Host]string{}}
}

func (i *issuer) Order(_ context.Context, o tlsprovider.Order) (tlsprovider.Status, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := errors.Join(i.err, o.Validate()); err != nil {
		return tlsprovider.Status{}, err
	}
	if i.orders[o.Host] != o.Owner {
		i.orders[o.Host] = o.Owner
		i.calls++
	}
	status := tlsprovider.Status{Problem: i.problem[o.Host]}
	if i.issued[o.Host] {
		status.Certificate = provider.Certificate{Host: o.Host, Secret: "tls-" + o.Host.String()}
	}
	return status, nil
}

func (i *issuer) Cancel(_ context.Context, host provider.Host) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.orders, host)
	i.calls++
	return i.err
}

func (i *issuer) Orders(context.Context) (orders []tlsprovider.Order, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for host, owner := range i.orders {
		orders = append(orders, tlsprovider.Order{Host: host, Owner: owner})
	}
	return orders, i.err
}

func (i *issuer) Watch(ctx context.Context, changed func(provider.Host)) error {
	i.mu.Lock()
	i.changed = changed
	i.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// set changes what the issuer says, and tells of it if there is a host.
func (i *issuer) set(host string, change func(provider.Host)) {
	i.mu.Lock()
	h := provider.Host{}
	if host != "" {
		h = hosts(host)[0]
	}
	change(h)
	changed := i.changed
	i.mu.Unlock()
	if host != "" {
		changed(h)
	}
}

func (i *issuer) issue(host string) { i.set(host, func(h provider.Host) { i.issued[h] = true }) }
func (i *issuer) complain(host, problem string) {
	i.set(host, func(h provider.Host) { i.problem[h] = problem })
}
func (i *issuer) fail(err error) { i.set("", func(provider.Host) { i.err = err }) }
func (i *issuer) owner(host string) (name string) {
	i.set("", func(provider.Host) { name = i.orders[hosts(host)[0]] })
	return name
}

func newCertifiedWorld(t *testing.T, change func(*webspace.Options)) (*world, *issuer) {
	i := newIssuer()
	w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
		w.opts.Issuer, w.opts.TLSGateway = i, "tcp://gateway:8443"
		if change != nil {
			change(&w.opts)
		}
	})
	w.create(1000)
	w.settled()
	return w, i
}

// certificates returns the hosts of a route that have one of their own.
func (w *world) certificates(name string) (has []string) {
	route, _ := w.provider.Route(name)
	for _, c := range route.Certificates {
		require.Equal(w.t, "tls-"+c.Host.String(), c.Secret)
		has = append(has, c.Host.String())
	}
	return has
}

func TestCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newCertifiedWorld(t, nil)
		require.Empty(t, i.owner("alice.example.test"), "the reverse proxy has one for the platform's own domain")
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		w.settled()
		require.Equal(t, "ws-u1000", i.owner(domain))
		route, _ := w.provider.Route("ws-u1000")
		require.Len(t, route.Hosts, 2, "a domain is routed before it has its certificate")
		require.Empty(t, w.certificates("ws-u1000"))
		i.complain(domain, "its DNS does not point here")
		w.settled()
		require.Contains(t, w.summary(1000).Problem, "the certificate of "+domain+": its DNS does not point here")
		stats := w.Stats()
		require.Equal(t, []int{1, 1}, []int{stats.Certificates, stats.CertificateProblems})
		i.complain(domain, "")
		i.issue(domain)
		w.settled()
		stats = w.Stats()
		require.Equal(t, []int{1, 0}, []int{stats.Certificates, stats.CertificateProblems})
		require.Equal(t, []string{domain}, w.certificates("ws-u1000"))
		require.Empty(t, w.summary(1000).Problem)

		// It outlives starts, stops and the daemon, also while the issuer can not be asked.
		calls := i.calls
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		require.Equal(t, []string{domain}, w.certificates("ws-u1000"))
		require.NoError(t, w.Stop(t.Context(), 1000))
		i.fail(fmt.Errorf("away: %w", errdefs.ErrUnavailable))
		w.stop()
		w.start()
		w.settled()
		require.Equal(t, []string{domain}, w.certificates("ws-u1000"))
		require.Contains(t, w.summary(1000).Problem, "could not be ordered: away")
		i.fail(nil)
		time.Sleep(time.Minute)
		require.Empty(t, w.summary(1000).Problem)
		require.Equal(t, []string{domain}, w.certificates("ws-u1000"))
		require.Equal(t, calls, i.calls)

		// A webspace that takes TLS itself needs none, but may want it again.
		on, off := true, false
		_, err := w.SetConfig(t.Context(), 1000, webspace.ConfigChange{SNIPassthrough: &on})
		require.NoError(t, err)
		w.settled()
		require.Empty(t, w.certificates("ws-u1000"))
		require.Equal(t, "ws-u1000", i.owner(domain))
		_, err = w.SetConfig(t.Context(), 1000, webspace.ConfigChange{SNIPassthrough: &off})
		require.NoError(t, err)
		w.settled()
		require.Equal(t, []string{domain}, w.certificates("ws-u1000"))

		require.NoError(t, w.RemoveDomain(t.Context(), 1000, domain))
		w.settled()
		require.Empty(t, i.owner(domain))
		require.Empty(t, w.certificates("ws-u1000"))

		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		w.settled()
		require.NoError(t, w.Delete(t.Context(), 1000))
		w.settled()
		require.Empty(t, i.owner(domain))
	})
}

// What has happened while no daemon ran is made up for, and what is only unreadable keeps its certificates.
func TestCertificatesAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newCertifiedWorld(t, nil)
		w.create(1001)
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		require.NoError(t, w.AddDomain(t.Context(), 1001, "bob.example.org"))
		w.settled()
		i.issue(domain)
		i.issue("bob.example.org")
		w.settled()
		w.stop()
		require.NoError(t, w.runtime.Delete(t.Context(), "ws-u1000"))
		bob := w.instance("ws-u1001")
		require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1001", []byte("{"), bob.Revision))
		i.set("", func(provider.Host) { i.orders[hosts("left.example.org")[0]] = "ws-u7" })
		w.start()
		w.settled()
		require.Empty(t, i.owner(domain))
		require.Empty(t, i.owner("left.example.org"))
		require.Equal(t, "ws-u1001", i.owner("bob.example.org"))
		require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1001", bob.Record, w.instance("ws-u1001").Revision))
		w.settled()
		time.Sleep(2 * time.Minute)
		require.Equal(t, []string{"bob.example.org"}, w.certificates("ws-u1001"))
	})
}

// One listing that is empty does not give up all certificates.
func TestCertificatesAreNotGivenUpAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newCertifiedWorld(t, nil)
		i.set("", func(provider.Host) {
			for n := range 30 {
				i.orders[hosts(fmt.Sprintf("d%d.example.org", n))[0]] = "ws-u7"
			}
		})
		w.stop()
		w.start()
		<-w.Synced()
		synctest.Wait()
		require.Equal(t, "ws-u7", i.owner("d7.example.org"))
		time.Sleep(2 * time.Minute)
		require.Empty(t, i.owner("d7.example.org"))
	})
}

func TestCertificatesOfDefaultDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, i := newCertifiedWorld(t, func(o *webspace.Options) { o.IssueDefault = true })
		require.Equal(t, "ws-u1000", i.owner("alice.example.test"))
		i.issue("alice.example.test")
		w.settled()
		require.Equal(t, []string{"alice.example.test"}, w.certificates("ws-u1000"))
	})
}

// An issuer that says nonsense harms nobody's route.
func TestBadIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newCertifiedWorld(t, func(o *webspace.Options) { o.Issuer = &confused{issuer: newIssuer()} })
		require.NoError(t, w.AddDomain(t.Context(), 1000, domain))
		w.settled()
		route, _ := w.provider.Route("ws-u1000")
		require.Len(t, route.Hosts, 2)
		require.Empty(t, route.Certificates)
		require.Contains(t, w.summary(1000).Problem, "the certificate of "+domain+" could not be ordered")
	})
}

// confused gives everybody the certificate of somebody else.
type confused struct{ *issuer }

func (c *confused) Order(ctx context.Context, o tlsprovider.Order) (tlsprovider.Status, error) {
	return tlsprovider.Status{Certificate: provider.Certificate{Host: hosts("other.example.org")[0], Secret: "other"}}, nil
}
