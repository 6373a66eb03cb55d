package webspace

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace/internal/keylock"
)

// Manager holds the use cases of webspaces. All methods are safe for concurrent use.
//
// [Manager.Run] has to run all the while: methods that need to know all webspaces wait for its first full read, for 10
// seconds at most, and then fail with Unavailable.
type Manager struct {
	runtime   Runtime
	directory identity.Directory
	learner   identity.Learner // the same, if it has to be told of users; else nil
	zone      string
	opts      Options
	log       *slog.Logger

	index       *index
	specs       keylock.Locks[string] // one writer of a record at a time
	lifecycle   keylock.Locks[string] // one start, stop or deletion at a time
	reads       keylock.Locks[string] // one refresh at a time, so that two do not find each other's reading stale for ever
	activations *flights[proxy.Target, struct{}]
	boots       chan struct{} // one value for each boot under way
	setups      chan struct{} // one value for each creation that is at work in its instance

	queue        *queue // to be reconciled
	probes       *queue // to be probed, because nobody knows whether they are ready
	routes       routes
	certificates certificates
	forwarder    PortForwarder // nil: there is none
	forwards     forwards
	resync       chan struct{}
	synced       chan struct{} // closed after the first full read
}

// NewManager returns a Manager of the webspaces in a runtime. directory knows their users; domain is the platform's own:
// user alice's webspace is alice.domain. Records remember usernames for when the directory can not tell.
func NewManager(runtime Runtime, directory identity.Directory, domain string, opts *Options) (*Manager, error) {
	if opts == nil {
		opts = new(Options)
	}
	zone, err := parseZone(domain)
	if err != nil {
		return nil, err
	}
	_, watched := runtime.(Watcher)
	learner, _ := directory.(identity.Learner)
	o := opts.withDefaults(watched)
	if err := o.validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		runtime: runtime, directory: directory, learner: learner, zone: zone, opts: o, log: o.Logger,
		index:       newIndex(),
		activations: newFlights[proxy.Target, struct{}](),
		boots:       make(chan struct{}, o.Boots),
		setups:      make(chan struct{}, o.Boots),
		queue:       newQueue(100*time.Millisecond, 5*time.Millisecond, 30*time.Second),
		probes:      newQueue(100*time.Millisecond, time.Second, time.Second),
		forwards:    forwards{byName: make(map[string]map[int]proxy.Target)},
		resync:      make(chan struct{}, 1),
		synced:      make(chan struct{}),
	}
	if o.Forwarder != nil {
		m.forwarder = o.Forwarder(m)
	}
	return m, nil
}

// Close ends all activations under way and waits for them. Webspaces and routes stay as they are. It is idempotent.
func (m *Manager) Close() error {
	m.activations.close()
	return nil
}

// Healthy reports whether the runtime can be reached, and else why not.
func (m *Manager) Healthy(ctx context.Context) error {
	// A name that no webspace has: the answer is cheap, and NotFound is as good as any.
	_, err := m.runtime.Get(ctx, instanceName(m.opts.Prefix, 0))
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Synced returns a channel that is closed when all webspaces have been read for the first time. Before that, host names
// are not known: what serves requests does well to wait for it.
func (m *Manager) Synced() <-chan struct{} { return m.synced }

func (m *Manager) isSynced() bool {
	select {
	case <-m.synced:
		return true
	default:
		return false
	}
}

func (m *Manager) awaitSync(ctx context.Context) error {
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-m.synced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("the webspaces have not been read yet: %w", errdefs.ErrUnavailable)
	}
}

// Images lists the images that webspaces can be created from.
func (m *Manager) Images(ctx context.Context) ([]Image, error) {
	if imager, ok := m.runtime.(Imager); ok {
		return imager.Images(ctx)
	}
	return nil, nil
}

// Get returns a webspace. NotFound if the user has none, FailedPrecondition if it is quarantined.
func (m *Manager) Get(ctx context.Context, id identity.UserID) (Webspace, error) {
	r, _, err := m.read(ctx, id)
	return r.Webspace.clone(), err
}

// read returns a webspace's record and instance, as the runtime has them.
func (m *Manager) read(ctx context.Context, id identity.UserID) (record, Instance, error) {
	name := instanceName(m.opts.Prefix, id)
	instance, err := m.runtime.Get(ctx, name)
	if err != nil {
		return record{}, Instance{}, m.wrap(id, err)
	}
	r, err := decodeRecord(instance.Record, name, id, m.opts.Defaults)
	if err != nil {
		return record{}, Instance{}, fmt.Errorf("webspace of user %d is quarantined: %w", id, err)
	}
	if r.Creating {
		return record{}, Instance{}, m.wrap(id, errdefs.ErrNotFound)
	}
	return r, instance, nil
}

func (m *Manager) wrap(id identity.UserID, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("user %d has no webspace: %w", id, errdefs.ErrNotFound) // that is all there is to say
	}
	return fmt.Errorf("webspace of user %d: %w", id, err)
}

// State returns what a webspace does and uses. NotFound if the user has none.
func (m *Manager) State(ctx context.Context, id identity.UserID) (State, error) {
	_, instance, err := m.read(ctx, id)
	if err != nil {
		return State{}, err
	}
	state, err := m.runtime.State(ctx, instance.Name)
	if err != nil {
		return State{}, m.wrap(id, err)
	}
	return state, nil
}

// Log returns the last limit bytes of a webspace's console log.
func (m *Manager) Log(ctx context.Context, id identity.UserID, limit int64) ([]byte, error) {
	logger, instance, err := m.logger(ctx, id)
	if err != nil {
		return nil, err
	}
	return logger.Log(ctx, instance, limit)
}

// ClearLog empties a webspace's console log.
func (m *Manager) ClearLog(ctx context.Context, id identity.UserID) error {
	logger, instance, err := m.logger(ctx, id)
	if err != nil {
		return err
	}
	return logger.ClearLog(ctx, instance)
}

func (m *Manager) logger(ctx context.Context, id identity.UserID) (Logger, string, error) {
	logger, ok := m.runtime.(Logger)
	if !ok {
		return nil, "", fmt.Errorf("this runtime keeps no console logs: %w", errdefs.ErrNotImplemented)
	}
	_, instance, err := m.read(ctx, id)
	return logger, instance.Name, err
}
