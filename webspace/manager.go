package webspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
)

// Mode says where the routes of running webspaces point.
type Mode string

const (
	// Direct routes go straight to the instance while it is ready, and to the gateway otherwise.
	Direct Mode = "direct"
	// Inline routes go to the gateway for ever, so that starts and stops change nothing in the reverse proxy.
	Inline Mode = "inline"
)

// Options of a [Manager]. The zero value of each is its default.
type Options struct {
	// Prefix of the instances' names ["ws-"]. Two managers on one runtime need different ones.
	Prefix string
	// Defaults of webspaces that do not say otherwise [3 s, port 80].
	Defaults Config
	// MaxStartupDelay bounds what members can set [60 s].
	MaxStartupDelay time.Duration

	// Provider takes the routes. nil: there are none, all requests come through the gateway.
	Provider provider.Provider
	// Mode [Direct].
	Mode Mode
	// Gateway is the URL at which the reverse proxy reaches the gateway. Required with a Provider.
	Gateway string
	// Settle is how long a reverse proxy may take to follow a changed route [3 s; negative: none].
	Settle time.Duration

	// Boots is how many webspaces boot at a time [4].
	Boots int
	// StartTimeout bounds the runtime's start of an instance [60 s].
	StartTimeout time.Duration
	// AddressTimeout bounds the wait for a started instance's address [15 s].
	AddressTimeout time.Duration
	// StopGrace is how long an instance may take to shut down before it is killed [30 s].
	StopGrace time.Duration
	// Drain is how long a stop waits for requests that are held for the webspace, and again for those under way in the
	// gateway [5 s].
	Drain time.Duration
	// Probe reports whether an endpoint takes connections; it is called until it succeeds, and bounds itself. The
	// default connects by TCP.
	Probe func(ctx context.Context, at netip.AddrPort) error

	// Ports bounds port forwards [49152 to 65535, 64 each webspace].
	Ports PortRange
	// MaxDomains bounds the custom domains of a webspace [20].
	MaxDomains int
	// VerifyDomain proves that a user controls a domain (in canonical form). Errors are InvalidArgument and tell the
	// user what is missing. nil: there are no custom domains.
	VerifyDomain func(ctx context.Context, user identity.UserID, domain string) error

	// Resync is the interval between full reads of the runtime and the provider [5 min; 10 s with a runtime that can
	// not be watched].
	Resync time.Duration
	// Logger [slog.Default].
	Logger *slog.Logger
}

// PortRange bounds port forwards.
type PortRange struct {
	First, Last int // external ports, inclusive
	Max         int // forwards each webspace
}

func (o Options) withDefaults(watched bool) Options {
	set(&o.Prefix, "ws-")
	set(&o.Defaults.StartupDelay, 3*time.Second)
	set(&o.Defaults.HTTPPort, 80)
	set(&o.MaxStartupDelay, time.Minute)
	set(&o.Mode, Direct)
	set(&o.Settle, 3*time.Second)
	set(&o.Boots, 4)
	set(&o.StartTimeout, time.Minute)
	set(&o.AddressTimeout, 15*time.Second)
	set(&o.StopGrace, 30*time.Second)
	set(&o.Drain, 5*time.Second)
	set(&o.Ports.First, 49152)
	set(&o.Ports.Last, 65535)
	set(&o.Ports.Max, 64)
	set(&o.MaxDomains, 20)
	set(&o.Resync, 5*time.Minute)
	if !watched {
		o.Resync = min(o.Resync, 10*time.Second)
	}
	if o.Probe == nil {
		o.Probe = dial
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func set[T comparable](option *T, value T) {
	var zero T
	if *option == zero {
		*option = value
	}
}

func (o Options) validate() error {
	switch {
	case !provider.IsLabel(o.Prefix + "u1"):
		return invalid("prefix %q can not begin a DNS label", o.Prefix)
	case len(o.Prefix) > 32:
		return invalid("prefix %q has more than 32 characters", o.Prefix)
	case o.Mode != Direct && o.Mode != Inline:
		return invalid("mode %q is neither direct nor inline", o.Mode)
	case !validPort(o.Ports.First) || !validPort(o.Ports.Last) || o.Ports.First > o.Ports.Last || o.Ports.Max < 0:
		return invalid("port range %d to %d", o.Ports.First, o.Ports.Last)
	case o.Boots < 0 || o.MaxDomains < 0 || o.Resync < 0:
		return invalid("options Boots, MaxDomains and Resync can not be negative")
	}
	if o.Provider != nil {
		host, err := provider.ParseHost("gateway.invalid")
		if err != nil {
			return err
		}
		route := provider.Route{Name: "gateway", Hosts: []provider.Host{host}, Backend: o.Gateway}
		if err := route.Validate(); err != nil {
			return fmt.Errorf("option Gateway: %w", err)
		}
	}
	return o.Defaults.validate(o.MaxStartupDelay)
}

// Manager holds the use cases of webspaces. All methods are safe for concurrent use.
//
// [Manager.Run] has to run all the while: methods that need to know all webspaces wait for its first full read, for 10
// seconds at most, and then fail with Unavailable.
type Manager struct {
	runtime   Runtime
	directory identity.Directory
	zone      string
	opts      Options
	log       *slog.Logger

	index       *index
	specs       locks[string] // one writer of a record at a time
	lifecycle   locks[string] // one start, stop or deletion at a time
	reads       locks[string] // one refresh at a time, so that two do not find each other's reading stale for ever
	activations *flights[proxy.Target, struct{}]
	boots       chan struct{} // one value for each boot under way

	queue  *queue // to be reconciled
	probes *queue // to be probed, because nobody knows whether they are ready
	routes routes
	resync chan struct{}
	synced chan struct{} // closed after the first full read
}

// NewManager returns a Manager of the webspaces in a runtime. directory knows their users; domain is the platform's own:
// user alice's webspace is alice.domain.
func NewManager(runtime Runtime, directory identity.Directory, domain string, opts *Options) (*Manager, error) {
	if opts == nil {
		opts = new(Options)
	}
	zone, err := parseZone(domain)
	if err != nil {
		return nil, err
	}
	_, watched := runtime.(Watcher)
	o := opts.withDefaults(watched)
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Manager{
		runtime: runtime, directory: directory, zone: zone, opts: o, log: o.Logger,
		index:       newIndex(),
		activations: newFlights[proxy.Target, struct{}](),
		boots:       make(chan struct{}, o.Boots),
		queue:       newQueue(100*time.Millisecond, 5*time.Millisecond, 30*time.Second),
		probes:      newQueue(100*time.Millisecond, time.Second, time.Second),
		resync:      make(chan struct{}, 1),
		synced:      make(chan struct{}),
	}, nil
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
		return fmt.Errorf("user %d has no webspace: %w", id, err)
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

// SetConfig changes options of a webspace and returns what all of them were before.
func (m *Manager) SetConfig(ctx context.Context, id identity.UserID, change ConfigChange) (Config, error) {
	var old Config
	err := m.modify(ctx, id, func(r *record) error {
		old = r.Config
		r.Config = old.with(change)
		if change.SNIPassthrough != nil && *change.SNIPassthrough {
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
	unlock, err := m.specs.lock(ctx, name)
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
		data, err := r.encode()
		if err != nil {
			return err
		}
		err = m.runtime.SetRecord(ctx, name, data, instance.Revision)
		if err == nil {
			affected := m.index.adjust(name, func(v *view) {
				v.record = r
				v.hosts = m.hosts(v.label, r)
			})
			m.dirty(name)
			m.reroute(affected...)
			return nil
		}
		if !errdefs.IsConflict(err) || time.Now().After(deadline) {
			m.dirty(name) // it may have been written all the same
			return m.wrap(id, err)
		}
		if err := sleep(ctx, wait/2+rand.N(wait)); err != nil {
			return err
		}
	}
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

// AddDomain verifies a custom domain and adds it. InvalidArgument: it is not a name that can be had, or not proven to be
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
	if _, _, err := m.read(ctx, id); err != nil {
		return err
	}
	name := host.String()
	release, ok := m.index.reserveHost(name, instanceName(m.opts.Prefix, id))
	if !ok {
		return fmt.Errorf("domain %s is used by a webspace: %w", name, errdefs.ErrAlreadyExists)
	}
	defer release()
	if err := m.opts.VerifyDomain(ctx, id, name); err != nil {
		return err
	}
	return m.modify(ctx, id, func(r *record) error {
		if slices.Contains(r.Domains, name) {
			return fmt.Errorf("domain %s is used by this webspace: %w", name, errdefs.ErrAlreadyExists)
		}
		if len(r.Domains) >= m.opts.MaxDomains {
			return fmt.Errorf("a webspace has at most %d custom domains: %w", m.opts.MaxDomains, errdefs.ErrResourceExhausted)
		}
		r.Domains = append(slices.Clone(r.Domains), name)
		return nil
	})
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
	if external != 0 {
		first, last = external, external
	}
	port, release, ok := m.index.reservePort(first, last)
	switch {
	case !ok && external != 0:
		return 0, fmt.Errorf("external port %d is used by a webspace: %w", external, errdefs.ErrAlreadyExists)
	case !ok:
		return 0, fmt.Errorf("no external port is free: %w", errdefs.ErrResourceExhausted)
	}
	defer release()
	return port, m.modify(ctx, id, func(r *record) error {
		if len(r.Ports) >= m.opts.Ports.Max {
			return fmt.Errorf("a webspace has at most %d port forwards: %w", m.opts.Ports.Max, errdefs.ErrResourceExhausted)
		}
		if _, ok := r.Ports[port]; ok {
			return fmt.Errorf("external port %d is used by this webspace: %w", port, errdefs.ErrAlreadyExists)
		}
		r.Ports[port] = internal
		return nil
	})
}

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

// Exec runs a command in a webspace, which is started if need be. See [Execer].
func (m *Manager) Exec(ctx context.Context, id identity.UserID, opts ExecOptions) (exitCode int, err error) {
	execer, ok := m.runtime.(Execer)
	if !ok {
		return 0, fmt.Errorf("this runtime runs no commands: %w", errdefs.ErrNotImplemented)
	}
	_, instance, err := m.read(ctx, id)
	if err != nil {
		return 0, err
	}
	if instance.Status != StatusRunning {
		if err := m.Start(ctx, id); err != nil && !errors.Is(err, errRunning) {
			return 0, err
		}
	}
	return execer.Exec(ctx, instance.Name, opts)
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
