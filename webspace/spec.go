package webspace

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
)

// SetConfig changes options of a webspace and returns what all of them were before.
func (m *Manager) SetConfig(ctx context.Context, id identity.UserID, change ConfigChange) (Config, error) {
	var old Config
	err := m.modify(ctx, id, func(r *record) error {
		old = r.Config
		r.Config = old.with(change)
		if change.SNIPassthrough != nil && *change.SNIPassthrough && m.opts.TLSGateway == "" {
			return invalid("sniPassthrough: this server does not pass TLS through")
		}
		return r.Config.validate(m.opts.MaxStartupDelay)
	})
	return old, err
}

// modify changes a record by compare and swap. change may be called several times.
func (m *Manager) modify(ctx context.Context, id identity.UserID, change func(*record) error) error {
	name := instanceName(m.opts.Prefix, id)
	// Other writers (a replica, an operator's hand) make a lost race possible; within this process the lock keeps the
	// losers from trying again and again.
	unlock, err := m.specs.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	deadline := time.Now().Add(10 * time.Second)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		r, instance, err := m.read(ctx, id)
		if err != nil {
			return err
		}
		if err := change(&r); err != nil {
			return err
		}
		r.Instance = name
		err = m.write(ctx, r, instance.Revision)
		if err == nil {
			return nil
		}
		if !errdefs.IsConflict(err) || time.Now().After(deadline) {
			return m.wrap(id, err)
		}
		if err := sleep(ctx, wait/2+rand.N(wait)); err != nil {
			return err
		}
	}
}

// write stores a record and lets the data path know at once.
func (m *Manager) write(ctx context.Context, r record, revision string) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	// Not while the instance is being read: changes one after the other would make each reading stale, and a boot that
	// waits for one would never get it.
	unlock, err := m.reads.Lock(ctx, r.Instance)
	if err != nil {
		return err
	}
	defer unlock()
	defer m.dirty(r.Instance) // whatever the answer, it may have been written
	if err := m.runtime.SetRecord(ctx, r.Instance, data, revision); err != nil {
		return err
	}
	m.reroute(m.index.adjust(r.Instance, func(v *view) {
		v.record = r
		v.hosts = m.hosts(v.label, r)
	})...)
	m.updatePorts(r.Instance)
	return nil
}

// Domains returns a webspace's host names: the default domain, if the user's name allows one, then the custom domains.
func (m *Manager) Domains(ctx context.Context, user identity.User) ([]string, error) {
	r, _, err := m.read(ctx, user.ID)
	if err != nil {
		return nil, err
	}
	domains := slices.Clone(r.Domains)
	if label, err := Label(user.Username); err == nil {
		domains = slices.Insert(domains, 0, label+"."+m.zone)
	}
	return domains, nil
}

// AddDomain verifies a custom domain and adds it, or routes it again if its proof had lapsed. InvalidArgument: it is not a name that can be had, or not proven to be
// the user's; AlreadyExists: a webspace has it; ResourceExhausted: too many.
func (m *Manager) AddDomain(ctx context.Context, id identity.UserID, domain string) error {
	host, err := parseDomain(domain, m.zone)
	if err != nil {
		return err
	}
	if m.opts.VerifyDomain == nil {
		return invalid("this server has no custom domains")
	}
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	name := host.String()
	add := func(r *record) error {
		if slices.Contains(r.Domains, name) {
			if !r.Checks[name].Lapsed {
				return fmt.Errorf("domain %s is used by this webspace: %w", name, errdefs.ErrAlreadyExists)
			}
			delete(r.Checks, name)
			return nil
		}
		if len(r.Domains) >= m.opts.MaxDomains {
			return fmt.Errorf("a webspace has at most %d custom domains: %w", m.opts.MaxDomains, errdefs.ErrResourceExhausted)
		}
		r.Domains = append(slices.Clone(r.Domains), name)
		return nil
	}
	if r, _, err := m.read(ctx, id); err != nil {
		return err
	} else if err := add(&r); err != nil {
		return err // before anybody's DNS is asked
	}
	release, ok := m.index.reserveHost(name, instanceName(m.opts.Prefix, id))
	if !ok {
		return fmt.Errorf("domain %s is used by a webspace: %w", name, errdefs.ErrAlreadyExists)
	}
	defer release()
	if err := m.opts.VerifyDomain(ctx, id, name); err != nil {
		return err
	}
	return m.modify(ctx, id, add)
}

// RemoveDomain removes a custom domain. NotFound if the webspace does not have it.
func (m *Manager) RemoveDomain(ctx context.Context, id identity.UserID, domain string) error {
	return m.modify(ctx, id, func(r *record) error {
		host, err := provider.ParseHost(domain)
		i := slices.Index(r.Domains, host.String())
		if err != nil || i < 0 {
			return fmt.Errorf("the webspace has no domain %.300q: %w", domain, errdefs.ErrNotFound)
		}
		r.Domains = slices.Delete(slices.Clone(r.Domains), i, i+1)
		delete(r.Checks, host.String())
		return nil
	})
}

// AddPort forwards an external port, or a random free one if it is 0, to a port of the instance. It returns the external
// port. InvalidArgument: out of range; AlreadyExists: taken; ResourceExhausted: too many, or none is free.
func (m *Manager) AddPort(ctx context.Context, id identity.UserID, external, internal int) (int, error) {
	first, last := m.opts.Ports.First, m.opts.Ports.Last
	if !validPort(internal) {
		return 0, invalid("internal port %d is not between 1 and 65535", internal)
	}
	if external != 0 && (external < first || external > last) {
		return 0, invalid("external port %d is not between %d and %d", external, first, last)
	}
	if err := m.awaitSync(ctx); err != nil {
		return 0, err
	}
	tries, none := 10, errNoPort
	if external != 0 {
		first, last, tries = external, external, 1
		none = fmt.Errorf("external port %d is used by a webspace: %w", external, errdefs.ErrAlreadyExists)
	}
	for range tries {
		port, release, ok := m.index.reservePort(first, last)
		if !ok {
			return 0, none
		}
		taken, err := m.claimPort(ctx, id, port, internal)
		release()
		if err != nil {
			return 0, err
		}
		if !taken {
			return port, nil
		}
	}
	return 0, none
}

// claimPort adds a port forward to a record. taken: another replica gave the external port away at the same time, so it
// was not added.
func (m *Manager) claimPort(ctx context.Context, id identity.UserID, external, internal int) (taken bool, err error) {
	err = m.modify(ctx, id, func(r *record) error {
		if len(r.Ports) >= m.opts.Ports.Max {
			return fmt.Errorf("a webspace has at most %d port forwards: %w", m.opts.Ports.Max, errdefs.ErrResourceExhausted)
		}
		if _, ok := r.Ports[external]; ok {
			return fmt.Errorf("external port %d is used by this webspace: %w", external, errdefs.ErrAlreadyExists)
		}
		r.Ports[external] = internal
		return nil
	})
	if err != nil {
		return false, err
	}
	// Records are not written together, but of two replicas that write at least the later one finds the other's record
	// when it looks afterwards. Whoever finds one steps back.
	taken, err = m.portTaken(ctx, id, external)
	if err == nil && !taken {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return taken, errors.Join(err, m.modify(ctx, id, func(r *record) error {
		delete(r.Ports, external)
		return nil
	}))
}

// portTaken reports whether the record of another webspace than the user's has an external port. It asks the runtime: a
// replica's writes are not in the index at once.
func (m *Manager) portTaken(ctx context.Context, id identity.UserID, port int) (bool, error) {
	instances, err := m.runtime.List(ctx, m.opts.Prefix)
	if err != nil {
		return false, m.wrap(id, err)
	}
	for _, instance := range instances {
		user, ok := instanceUser(m.opts.Prefix, instance.Name)
		if !ok || user == id {
			continue
		}
		r, err := decodeRecord(instance.Record, instance.Name, user, m.opts.Defaults)
		if _, has := r.Ports[port]; err == nil && has {
			return true, nil
		}
	}
	return false, nil
}

var errNoPort = fmt.Errorf("no external port is free: %w", errdefs.ErrResourceExhausted)

// RemovePort removes a port forward. NotFound if the webspace does not have it.
func (m *Manager) RemovePort(ctx context.Context, id identity.UserID, external int) error {
	return m.modify(ctx, id, func(r *record) error {
		if _, ok := r.Ports[external]; !ok {
			return fmt.Errorf("the webspace does not forward port %d: %w", external, errdefs.ErrNotFound)
		}
		delete(r.Ports, external)
		return nil
	})
}
