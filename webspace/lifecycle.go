package webspace

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/proxy"
)

// Create makes a webspace for a user, stopped. AlreadyExists if there is one; NotFound if there is no such image;
// InvalidArgument if the request or the user's name will not do. A creation that failed or was killed half-way leaves
// nothing that the next one does not clean up.
//
// With a password or an SSH server it takes as long as that does in the instance, at most [Options.SetupTimeout]; nobody
// has an address at the webspace until all is done. InvalidArgument: the account has no SSH key, or the image no SSH
// server and it is not known how to install one; FailedPrecondition: it did not work, and the error has the end of what
// was printed; NotImplemented: the runtime is not [Isolated].
func (m *Manager) Create(ctx context.Context, user identity.User, req CreateRequest) (Webspace, error) {
	if user.ID <= 0 {
		return Webspace{}, invalid("user ID %d is not positive", user.ID)
	}
	label, err := Label(user.Username)
	if err != nil {
		return Webspace{}, err
	}
	if err := req.validate(); err != nil {
		return Webspace{}, err
	}
	setup, err := m.newSetup(ctx, user, req)
	if err != nil {
		return Webspace{}, err
	}
	if err := m.awaitSync(ctx); err != nil {
		return Webspace{}, err
	}
	name := instanceName(m.opts.Prefix, user.ID)
	unlock, err := m.lifecycle.Lock(ctx, name)
	if err != nil {
		return Webspace{}, err
	}
	defer unlock()
	host := label + "." + m.zone
	release, ok := m.index.reserveHost(host, name)
	if !ok {
		return Webspace{}, fmt.Errorf("%s is the address of another webspace: %w", host, errdefs.ErrAlreadyExists)
	}
	defer release()
	if err := m.clearUnfinished(ctx, user.ID, name); err != nil {
		return Webspace{}, err
	}

	r := record{Webspace: Webspace{User: user.ID, Config: m.opts.Defaults, Ports: map[int]int{}}, Instance: name, Username: user.Username, Creating: true}
	if setup.ssh {
		port, release, ok := m.index.reservePort(m.opts.Ports.First, m.opts.Ports.Last)
		if !ok {
			return Webspace{}, errNoPort
		}
		defer release()
		r.Ports[port] = sshPort
	}
	data, err := r.encode()
	if err != nil {
		return Webspace{}, err
	}
	if err := m.runtime.Create(ctx, name, CreateOptions{Image: req.Image, Record: data}); err != nil {
		if !errdefs.IsAlreadyExists(err) { // then somebody else is making it
			m.discard(ctx, user.ID, name)
		}
		return Webspace{}, fmt.Errorf("create webspace of user %d: %w", user.ID, err)
	}
	if !setup.empty() {
		if err := m.setUp(ctx, name, setup); err != nil {
			m.log.Warn("creation failed", "webspace", name, "user", user.Username, "image", req.Image, "error", err)
			m.discard(ctx, user.ID, name)
			return Webspace{}, fmt.Errorf("create webspace of user %d: %w", user.ID, err)
		}
	}
	r.Creating = false
	if data, err = r.encode(); err == nil {
		err = m.runtime.SetRecord(ctx, name, data, "")
	}
	// A record that was written although the answer was lost makes a complete webspace.
	if err != nil && !m.discard(ctx, user.ID, name) {
		return Webspace{}, fmt.Errorf("finish webspace of user %d: %w", user.ID, err)
	}
	m.log.Info("created", "webspace", name, "user", user.Username, "image", req.Image)
	affected, _ := m.index.update(name, user.ID, math.MaxUint64, func(v *view) {
		*v = view{known: true, status: StatusStopped, record: r, username: user.Username, label: label, hosts: m.hosts(label, r)}
	})
	m.updatePorts(name)
	m.dirty(name)
	m.reroute(affected...)
	return r.Webspace.clone(), nil
}

// clearUnfinished removes what an earlier creation left. A complete webspace is AlreadyExists, and so is an instance
// that we did not make.
func (m *Manager) clearUnfinished(ctx context.Context, id identity.UserID, name string) error {
	instance, err := m.runtime.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return m.wrap(id, err)
	}
	r, err := decodeRecord(instance.Record, name, id, m.opts.Defaults)
	if err != nil {
		return fmt.Errorf("webspace of user %d is quarantined (%w): %w", id, err, errdefs.ErrAlreadyExists)
	}
	if !r.Creating {
		return fmt.Errorf("user %d has a webspace: %w", id, errdefs.ErrAlreadyExists)
	}
	m.log.Warn("removing an unfinished webspace", "webspace", name)
	return m.destroy(ctx, name)
}

// discard removes an unfinished webspace even if the caller has left. If that fails, the next creation does it. It
// reports whether there is something complete instead.
func (m *Manager) discard(ctx context.Context, id identity.UserID, name string) (complete bool) {
	defer m.dirty(name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	// Not destroy outright: Create may have failed because the instance is somebody else's.
	err := m.clearUnfinished(ctx, id, name)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		m.log.Warn("an unfinished webspace is left", "webspace", name, "error", err)
	}
	return errdefs.IsAlreadyExists(err)
}

// destroy stops and deletes an instance, if it is there.
func (m *Manager) destroy(ctx context.Context, name string) error {
	for attempt := 0; ; attempt++ {
		err := m.runtime.Stop(ctx, name, 0)
		if err == nil {
			err = m.runtime.Delete(ctx, name)
		}
		switch {
		case err == nil || errdefs.IsNotFound(err):
			return nil
		case attempt < 20 && (errdefs.IsConflict(err) || errdefs.IsFailedPrecondition(err)):
			// Busy with something else, or started by its engine in between.
			if err := sleep(ctx, 250*time.Millisecond); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// Delete removes a webspace with all its data, and stops it before if it runs. NotFound if there is none.
func (m *Manager) Delete(ctx context.Context, id identity.UserID) error {
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	name := instanceName(m.opts.Prefix, id)
	unlock, err := m.lifecycle.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	instance, err := m.runtime.Get(ctx, name)
	if err != nil {
		return m.wrap(id, err)
	}
	if _, err := decodeRecord(instance.Record, name, id, m.opts.Defaults); err != nil {
		return fmt.Errorf("webspace of user %d is quarantined: %w", id, err)
	}
	defer m.dirty(name) // after the flags are down again: what failed half-way gets its route back
	if e := m.known(ctx, name); e != nil {
		// The route goes first, and the reverse proxy gets time to follow: the address is free for another webspace
		// as soon as the instance is gone.
		m.index.adjust(name, func(v *view) { v.deleting = true })
		defer m.index.adjust(name, func(v *view) { v.deleting = false })
		m.updatePorts(name)
		if err := m.settle(ctx, name); err != nil {
			return fmt.Errorf("remove the route of webspace %s: %w", name, err)
		}
		defer e.undrain()
		if err := m.drain(ctx, e); err != nil {
			return err
		}
	}
	ctx, cancel := m.detached(ctx)
	defer cancel()
	if instance.Status == StatusRunning {
		if err := m.runtime.Stop(ctx, name, m.opts.StopGrace); err != nil && !errdefs.IsNotFound(err) {
			return m.wrap(id, err)
		}
	}
	if err := m.destroy(ctx, name); err != nil {
		return m.wrap(id, err)
	}
	m.log.Info("deleted", "webspace", name)
	m.forget(name, m.index.now())
	return nil
}

var errRunning = fmt.Errorf("the webspace is running: %w", errdefs.ErrConflict)

// Start starts a webspace; it does not wait until it is ready. Conflict if it runs already.
func (m *Manager) Start(ctx context.Context, id identity.UserID) error {
	name := instanceName(m.opts.Prefix, id)
	check := func() error {
		_, instance, err := m.read(ctx, id)
		if err == nil && instance.Status == StatusRunning {
			return errRunning
		}
		return err
	}
	if err := check(); err != nil {
		return err
	}
	release, unlock, err := m.lockWithSlot(ctx, name, func() (func(), error) { return m.bootSlot(ctx, name, nil) })
	if err != nil {
		return err
	}
	defer release()
	defer unlock()
	if err := check(); err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, m.opts.StartTimeout)
	defer cancel()
	defer m.dirty(name)
	m.tell(name, NoticeStarting, startingMessage)
	if err := m.runtime.Start(start, name); err != nil {
		m.tell(name, NoticeFailed, "This webspace could not be started.")
		return m.wrap(id, err)
	}
	m.refreshQuietly(ctx, name)
	return nil
}

// Stop shuts a webspace down, and kills it if that takes too long. FailedPrecondition if it does not run. Requests that
// arrive meanwhile are held, and start it again afterwards.
func (m *Manager) Stop(ctx context.Context, id identity.UserID) error {
	return m.halt(ctx, id, m.runtime.Stop)
}

// Restart stops a webspace and starts it again. FailedPrecondition if it does not run.
func (m *Manager) Restart(ctx context.Context, id identity.UserID) error {
	return m.halt(ctx, id, m.runtime.Restart)
}

func (m *Manager) halt(ctx context.Context, id identity.UserID, halt func(context.Context, string, time.Duration) error) error {
	if err := m.awaitSync(ctx); err != nil {
		return err
	}
	name := instanceName(m.opts.Prefix, id)
	if e := m.index.find(name); e != nil {
		if err := m.awaitServed(ctx, e); err != nil {
			return err
		}
	}
	unlock, err := m.lifecycle.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	_, instance, err := m.read(ctx, id)
	if err != nil {
		return err
	}
	if instance.Status == StatusStopped {
		return fmt.Errorf("the webspace is not running: %w", errdefs.ErrFailedPrecondition)
	}
	defer m.dirty(name)
	m.tell(name, NoticeStopping, stoppingMessage)
	e := m.known(ctx, name)
	if e != nil {
		m.index.adjust(name, func(v *view) { v.detour = true })
		defer m.index.adjust(name, func(v *view) { v.detour = false })
		if err := m.settle(ctx, name); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// A store of routes that is out of reach is no reason not to stop. Visitors get the reverse proxy's own
			// error until it is back.
			m.log.Warn("stopping although its route could not be changed", "webspace", name, "error", err)
		}
		defer e.undrain()
		if err := m.drain(ctx, e); err != nil {
			return err
		}
	}
	ctx, cancel := m.detached(ctx)
	defer cancel()
	if err := halt(ctx, name, m.opts.StopGrace); err != nil {
		return m.wrap(id, err)
	}
	m.refreshQuietly(ctx, name)
	if e != nil {
		m.tellStanding(e) // a restart may look as if nothing had happened
	}
	return nil
}

// detached returns a context for what has to be finished once it has begun, whether or not the caller stays: a client that
// leaves during a restart does not mean to have its webspace stopped.
func (m *Manager) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), m.opts.StopGrace+2*m.opts.StartTimeout)
}

// known returns the entry of an instance. One that no event has told of yet is read.
func (m *Manager) known(ctx context.Context, name string) *entry {
	if m.index.find(name) == nil {
		m.refreshQuietly(ctx, name)
	}
	return m.index.find(name)
}

// refreshQuietly lets the data path know at once what has just been done. If it fails, the reconciler catches up.
func (m *Manager) refreshQuietly(ctx context.Context, name string) {
	if _, err := m.refresh(ctx, name); err != nil && !errors.Is(err, errNobody) {
		m.log.Debug("refresh failed", "webspace", name, "error", err)
	}
}

// EnsureStarted boots a webspace if need be, waits until its HTTP port takes connections and returns where that is.
func (m *Manager) EnsureStarted(ctx context.Context, id identity.UserID) (netip.AddrPort, error) {
	r, instance, err := m.read(ctx, id)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := m.refresh(ctx, instance.Name); err != nil {
		return netip.AddrPort{}, m.wrap(id, err)
	}
	endpoint, err := m.Activate(ctx, proxy.Target{Webspace: instance.Name, Port: r.Config.HTTPPort})
	if err != nil {
		return netip.AddrPort{}, err
	}
	endpoint.Release(nil)
	return endpoint.Address, nil
}
