package webspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/webspace/internal/keylock"
)

// certificates are the orders at the issuer, as far as is known, and what has become of them.
type certificates struct {
	locks keylock.Locks[string] // one call of the issuer for a host at a time

	mu     sync.Mutex
	byHost map[provider.Host]certificate
}

type certificate struct {
	owner  string
	known  bool // the issuer has said what follows
	status tlsprovider.Status
	asked  time.Time // when it was last asked; zero: it has something new to say
	failed error     // why it could not be asked
}

func (c *certificates) get(host provider.Host) (certificate, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	certificate, ok := c.byHost[host]
	return certificate, ok
}

func (c *certificates) set(host provider.Host, next certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHost == nil {
		c.byHost = make(map[provider.Host]certificate)
	}
	c.byHost[host] = next
}

func (c *certificates) forget(host provider.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byHost, host)
}

// note takes in orders that stand, of which nothing else is known.
func (c *certificates) note(orders []tlsprovider.Order) {
	for _, order := range orders {
		if _, ok := c.get(order.Host); !ok {
			c.set(order.Host, certificate{owner: order.Owner})
		}
	}
}

// renew notes that the issuer has something new to say about a host, and returns whose it is.
func (c *certificates) renew(host provider.Host) (owner string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	certificate, ok := c.byHost[host]
	if ok {
		certificate.asked = time.Time{}
		c.byHost[host] = certificate
	}
	return certificate.owner
}

// ordered returns the hosts that are ordered for a webspace.
func (c *certificates) ordered(owner string) (hosts []provider.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for host, certificate := range c.byHost {
		if certificate.owner == owner {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// of returns what the route to these hosts, which are to have certificates, refers to. As long as the issuer has not said anything about
// a host, that is what the route that stands does, so that a restart changes nothing.
func (c *certificates) of(hosts []provider.Host, current provider.Route) (certificates []provider.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range hosts {
		certificate := c.byHost[host]
		refers := certificate.status.Certificate
		if !certificate.known {
			refers = current.Certificate(host)
		}
		if refers.Host == host {
			certificates = append(certificates, refers)
		}
	}
	return certificates
}

// problem says what is wrong with the certificate of a host; empty: nothing.
func (c certificate) problem(host provider.Host) string {
	switch {
	case c.failed != nil:
		return fmt.Sprintf("the certificate of %s could not be ordered: %v", host, c.failed)
	case c.status.Problem != "":
		return fmt.Sprintf("the certificate of %s: %s", host, c.status.Problem)
	}
	return ""
}

// problems says what is wrong with the certificates of a webspace.
func (c *certificates) problems(owner string) (problems []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for host, certificate := range c.byHost {
		if problem := certificate.problem(host); problem != "" && certificate.owner == owner {
			problems = append(problems, problem)
		}
	}
	slices.Sort(problems)
	return problems
}

func (c *certificates) count() (all, problems int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for host, certificate := range c.byHost {
		if certificate.problem(host) != "" {
			problems++
		}
	}
	return len(c.byHost), problems
}

// certified returns the hosts of a webspace that are to have certificates from the issuer.
func (m *Manager) certified(name string) (hosts []provider.Host) {
	e := m.index.find(name)
	if e == nil || m.opts.Issuer == nil {
		return nil
	}
	v := m.index.look(e)
	if !v.routable() || v.record.Config.SNIPassthrough {
		return nil
	}
	has, _ := m.index.owned(e)
	for _, name := range has {
		host, err := provider.ParseHost(name)
		if err == nil && (m.opts.IssueDefault || !host.Within(m.zone)) {
			hosts = append(hosts, host)
		}
	}
	slices.SortFunc(hosts, provider.Host.Compare)
	return hosts
}

// uncertified reports whether the issuer has to be asked about a webspace, or asked again after so much time.
func (m *Manager) uncertified(name string, after time.Duration) bool {
	for _, host := range m.certified(name) {
		if c, _ := m.certificates.get(host); c.owner != name || c.failed != nil || time.Since(c.asked) >= after {
			return true
		}
	}
	return false
}

// updateCertificates orders the certificates that a webspace needs, and cancels those that nobody needs any more. It
// returns whether its route may have to change. Without a change it asks the issuer once in each resync.
func (m *Manager) updateCertificates(ctx context.Context, name string) (changed bool, err error) {
	if m.opts.Issuer == nil {
		return false, nil
	}
	var errs []error
	for _, host := range m.certified(name) {
		updated, err := m.order(ctx, tlsprovider.Order{Host: host, Owner: name})
		changed = changed || updated
		errs = append(errs, err)
	}
	if e := m.index.find(name); !m.isSynced() || e != nil && !m.index.look(e).routable() {
		return changed, errors.Join(errs...) // nobody knows who needs what, or what a quarantined webspace will need again
	}
	for _, host := range m.certificates.ordered(name) {
		if m.index.ownerOf(host.String()) == nil {
			errs = append(errs, m.cancel(ctx, host))
		}
	}
	return changed, errors.Join(errs...)
}

func (m *Manager) order(ctx context.Context, order tlsprovider.Order) (changed bool, err error) {
	ctx, done, err := m.atIssuer(ctx, order.Host)
	if err != nil {
		return false, err
	}
	defer done()
	before, _ := m.certificates.get(order.Host)
	if before.owner == order.Owner && before.failed == nil && time.Since(before.asked) < m.opts.Resync/2 {
		return false, nil
	}
	next := certificate{owner: order.Owner, known: before.known, status: before.status, asked: time.Now()}
	status, err := m.opts.Issuer.Order(ctx, order)
	if err == nil && status.Certificate != (provider.Certificate{}) {
		if err = status.Certificate.Validate(); err == nil && status.Certificate.Host != order.Host {
			err = invalid("the issuer gave the certificate of %s", status.Certificate.Host)
		}
	}
	if next.failed = err; err == nil {
		next.known, next.status = true, status
	}
	m.certificates.set(order.Host, next)
	if err != nil {
		return false, fmt.Errorf("order the certificate of %s: %w", order.Host, err)
	}
	return !before.known || before.status.Certificate != status.Certificate, nil
}

func (m *Manager) cancel(ctx context.Context, host provider.Host) error {
	ctx, done, err := m.atIssuer(ctx, host)
	if err != nil {
		return err
	}
	defer done()
	if m.index.ownerOf(host.String()) != nil {
		return nil // somebody has it now
	}
	if err := m.opts.Issuer.Cancel(ctx, host); err != nil {
		return fmt.Errorf("cancel the certificate of %s: %w", host, err)
	}
	m.certificates.forget(host)
	return nil
}

// atIssuer bounds a call of the issuer for a host.
func (m *Manager) atIssuer(ctx context.Context, host provider.Host) (context.Context, func(), error) {
	unlock, err := m.certificates.locks.Lock(ctx, host.String())
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	return ctx, func() { cancel(); unlock() }, nil
}

// syncCertificates takes in the orders that stand. It returns the webspaces for which something has to be ordered or
// cancelled.
func (m *Manager) syncCertificates(ctx context.Context, guard *removalGuard) (names []string, err error) {
	if m.opts.Issuer == nil {
		return nil, nil
	}
	for _, e := range m.index.all() {
		if m.uncertified(e.name, m.opts.Resync/2) {
			names = append(names, e.name)
		}
	}
	orders, err := m.opts.Issuer.Orders(ctx)
	if err != nil {
		return names, fmt.Errorf("read the orders of certificates: %w", err)
	}
	m.certificates.note(orders)
	needless := make(map[string]bool)
	var owners []string
	for _, order := range orders {
		if m.index.ownerOf(order.Host.String()) == nil {
			needless[order.Host.String()] = true
			owners = append(owners, order.Owner)
		}
	}
	if !guard.allows(needless, len(orders)) {
		m.log.Warn("most certificates seem to be needed no more; looking again before they are given up", "certificates", len(needless))
		return names, nil
	}
	return append(names, owners...), nil
}

// watchCertificates has the routes follow the certificates, until ctx ends.
func (m *Manager) watchCertificates(ctx context.Context) {
	watcher, ok := m.opts.Issuer.(tlsprovider.Watcher)
	if !ok {
		return
	}
	m.keepWatching(ctx, "lost the issuer's events", func() error {
		return watcher.Watch(ctx, func(host provider.Host) {
			if owner := m.certificates.renew(host); owner != "" {
				m.reroute(owner)
			}
		})
	})
}
