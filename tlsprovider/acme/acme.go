// Package acme is an issuer that obtains certificates from an ACME certificate authority (RFC 8555), such as Let's Encrypt.
//
//	i, err := acme.New("/var/lib/webspaced/acme", &acme.Options{Email: "admin@example.org"})
//
// It opens no listener. HTTP-01 challenges are answered by [Issuer.HandleChallenge], which whatever serves port 80 of the
// hosts calls first; TLS-ALPN-01 challenges by [Issuer.GetCertificate], in a server whose [tls.Config] has [ALPN] among its
// NextProtos.
//
// Everything is kept in one directory: the account, and one file a host with its order, its certificate and the attempts of
// the last day. A host that was cancelled keeps its file as long as its certificate is good or its attempts count, so that
// ordering it again costs nothing, and cancelling it no budget.
//
// The protocol is acmez, the client under CertMagic. CertMagic itself keeps its rate limits in variables of its package, and
// its solvers listen for themselves.
package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/time/rate"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// LetsEncrypt is the directory of Let's Encrypt's certificate authority, and LetsEncryptStaging that of the one to try with.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// ALPN is the protocol of TLS-ALPN-01 (RFC 8737), for NextProtos of a [tls.Config] whose certificates are an Issuer's. A
// connection that has negotiated it ends with its handshake.
const ALPN = "acme-tls/1"

// Challenge is a way to prove control of a host to the certificate authority.
type Challenge string

// The challenges that can be answered.
const (
	HTTP01    Challenge = "http-01"
	TLSALPN01 Challenge = "tls-alpn-01"
)

// Options of an [Issuer]. The zero value of each is its default.
type Options struct {
	// Directory is the URL of the certificate authority's directory [LetsEncrypt]. With an Issuer its terms are agreed to.
	Directory string
	// Email is what the authority writes to when something is wrong. Empty: it writes to nobody.
	Email string
	// CAFile has, in PEM, the certificates that the directory's own is checked with. Empty: the system's.
	CAFile string
	// Challenges that are answered [HTTP-01], the first one first: each failed attempt is followed by one with the next.
	Challenges []Challenge

	// MaxOrders bounds the hosts that are kept, cancelled ones included [20,000].
	MaxOrders int
	// HostOrders bounds what is ordered of the authority for a host in 24 hours, attempts that failed not counted [2].
	HostOrders int
	// OwnerOrders bounds what is ordered of the authority for an owner in 24 hours, with attempts that failed [60].
	OwnerOrders int
	// AccountOrders bounds what is ordered of the authority in 3 hours [250].
	AccountOrders int

	// Standby has New succeed while another Issuer works on the directory: that of a process which this one replaces. The
	// certificates there are served meanwhile, and nothing can be changed. Once the other one is closed, this one takes over.
	Standby bool

	// Logger [slog.Default].
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	set(&o.Directory, LetsEncrypt)
	set(&o.MaxOrders, 20_000)
	set(&o.HostOrders, 2)
	set(&o.OwnerOrders, 60)
	set(&o.AccountOrders, 250)
	if len(o.Challenges) == 0 {
		o.Challenges = []Challenge{HTTP01}
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

// Issuer obtains certificates and renews them, until it is closed. It implements [tlsprovider.Issuer],
// [tlsprovider.Watcher], [tlsprovider.Holder] and [tlsprovider.Challenger], and is safe for concurrent use.
type Issuer struct {
	opts      Options
	store     *store
	authority authority
	answers   *answers
	pace      *rate.Limiter

	// disk is held while a record changes: on disk first, then in memory. mu alone guards the memory, so that no handshake
	// waits for a disk.
	disk     sync.Mutex
	mu       sync.Mutex
	hosts    map[provider.Host]*host
	watchers map[*func(provider.Host)]bool

	wake   chan struct{} // something may be due
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	closed func() error
}

var (
	_ tlsprovider.Issuer     = (*Issuer)(nil)
	_ tlsprovider.Watcher    = (*Issuer)(nil)
	_ tlsprovider.Holder     = (*Issuer)(nil)
	_ tlsprovider.Challenger = (*Issuer)(nil)
)

// host is what is known of one.
type host struct {
	record
	served *tls.Certificate // of the record, nil if it has none that is good
	busy   bool             // somebody looks after it
	spends bool             // an attempt is about to be written down
	held   string           // the budget that forbids the next attempt
	asked  time.Time        // when the authority is asked next whether the certificate should be renewed early
}

// New returns an Issuer on a directory, which is made if it is not there, for its user alone. Only one Issuer at a time works
// on a directory, see [Options.Standby]; a deployment has its own. The authority need not be reachable. Errors: InvalidArgument for options,
// Unavailable and PermissionDenied for the directory.
func New(dir string, opts *Options) (*Issuer, error) {
	if opts == nil {
		opts = &Options{}
	}
	o := opts.withDefaults()
	answers := newAnswers()
	store, err := openStore(dir, o)
	if err != nil {
		return nil, err
	}
	client, err := newClient(o, store, answers)
	if err != nil {
		return nil, errors.Join(err, store.close())
	}
	return start(o, store, client, answers)
}

func start(o Options, store *store, authority authority, answers *answers) (*Issuer, error) {
	ctx, cancel := context.WithCancel(context.Background())
	i := &Issuer{
		opts: o, store: store, authority: authority, answers: answers, pace: rate.NewLimiter(1, 10),
		hosts: map[provider.Host]*host{}, watchers: map[*func(provider.Host)]bool{},
		wake: make(chan struct{}, 1), ctx: ctx, cancel: cancel, closed: sync.OnceValue(store.close),
	}
	if err := i.load(); err != nil {
		cancel()
		return nil, errors.Join(err, store.close())
	}
	standby := store.lock == nil
	i.tasks.Go(func() {
		if !standby || i.takeOver() {
			i.run()
		}
	})
	return i, nil
}

// load reads what is on disk.
func (i *Issuer) load() error {
	records, err := i.store.load()
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.hosts)
	for _, r := range records {
		i.hosts[r.host] = &host{record: r, served: r.pair()}
	}
	return nil
}

// takeOver waits until nobody else works on the directory, and takes in what was done there. It returns false if the issuer
// was closed before.
func (i *Issuer) takeOver() bool {
	try := func() error {
		i.disk.Lock()
		defer i.disk.Unlock()
		if i.store.lock == nil {
			if err := i.store.acquire(); err != nil {
				return err
			}
		}
		return i.load()
	}
	for err := try(); err != nil; err = try() {
		if !errors.Is(err, errInUse) {
			i.opts.Logger.Warn("can not take over the directory of certificates", "error", err)
		}
		select {
		case <-time.After(time.Second):
		case <-i.ctx.Done():
			return false
		}
	}
	i.mu.Lock()
	names := slices.Collect(maps.Keys(i.hosts))
	i.mu.Unlock()
	for _, name := range names {
		i.tell(name)
	}
	return true
}

// Close ends what is under way, and waits for it. What was ordered stands.
func (i *Issuer) Close() error {
	i.cancel()
	i.tasks.Wait()
	i.disk.Lock() // a last Order or Cancel
	defer i.disk.Unlock()
	return i.closed()
}

// Order implements [tlsprovider.Issuer]. ResourceExhausted: there are too many orders.
func (i *Issuer) Order(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
	if err := ctx.Err(); err != nil {
		return tlsprovider.Status{}, err
	}
	if err := order.Validate(); err != nil {
		return tlsprovider.Status{}, err
	}
	i.mu.Lock()
	h, status := i.hosts[order.Host], tlsprovider.Status{}
	if h != nil && h.Owner == order.Owner {
		status = h.status()
		i.mu.Unlock()
		return status, nil
	}
	full := h == nil && len(i.hosts) >= i.opts.MaxOrders
	i.mu.Unlock()
	if full {
		return status, fmt.Errorf("order of %s: there are %d hosts already: %w", order.Host, i.opts.MaxOrders, errdefs.ErrResourceExhausted)
	}
	if err := i.update(order.Host, func(r *record) { r.Owner = order.Owner }); err != nil {
		return status, err
	}
	i.wakeUp()
	i.mu.Lock()
	defer i.mu.Unlock()
	if h := i.hosts[order.Host]; h != nil {
		status = h.status()
	}
	return status, nil
}

// Cancel implements [tlsprovider.Issuer].
func (i *Issuer) Cancel(ctx context.Context, name provider.Host) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	i.mu.Lock()
	h := i.hosts[name]
	stands := h != nil && h.Owner != ""
	i.mu.Unlock()
	if !stands {
		return nil
	}
	return i.update(name, func(r *record) { r.Owner = "" })
}

// Orders implements [tlsprovider.Issuer].
func (i *Issuer) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var orders []tlsprovider.Order
	for name, h := range i.hosts {
		if h.Owner != "" {
			orders = append(orders, tlsprovider.Order{Host: name, Owner: h.Owner})
		}
	}
	slices.SortFunc(orders, func(a, b tlsprovider.Order) int { return a.Host.Compare(b.Host) })
	return orders, nil
}

// Watch implements [tlsprovider.Watcher].
func (i *Issuer) Watch(ctx context.Context, changed func(provider.Host)) error {
	i.mu.Lock()
	i.watchers[&changed] = true
	i.mu.Unlock()
	<-ctx.Done()
	i.mu.Lock()
	delete(i.watchers, &changed)
	i.mu.Unlock()
	return ctx.Err()
}

func (i *Issuer) tell(name provider.Host) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for changed := range i.watchers {
		(*changed)(name)
	}
}

// GetCertificate implements [tlsprovider.Holder]. It answers TLS-ALPN-01 challenges, too.
func (i *Issuer) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, err := provider.ParseHost(hello.ServerName)
	if err != nil {
		return nil, err
	}
	if slices.Equal(hello.SupportedProtos, []string{ALPN}) {
		if certificate := i.answers.certificate(name); certificate != nil {
			return certificate, nil
		}
		return nil, fmt.Errorf("no challenge of %s is under way: %w", name, errdefs.ErrNotFound)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if h := i.hosts[name]; h != nil && h.Owner != "" && h.served != nil {
		return h.served, nil
	}
	return nil, fmt.Errorf("there is no certificate of %s: %w", name, errdefs.ErrNotFound)
}

// HandleChallenge implements [tlsprovider.Challenger].
func (i *Issuer) HandleChallenge(w http.ResponseWriter, r *http.Request) bool {
	return i.answers.handle(w, r)
}

// update changes the record of a host, which is made if there is none, and forgotten when nothing depends on it any more.
// If it can not be written, nothing changes.
func (i *Issuer) update(name provider.Host, change func(*record)) error {
	i.disk.Lock()
	defer i.disk.Unlock()
	if err := i.ctx.Err(); err != nil {
		return fmt.Errorf("the issuer is closed: %w", errdefs.ErrUnavailable)
	}
	if i.store.lock == nil {
		return errInUse
	}
	i.mu.Lock()
	r := record{host: name, Host: name.String()}
	if h := i.hosts[name]; h != nil {
		r = h.record.clone()
	}
	i.mu.Unlock()
	before := r.Chain
	change(&r)
	r.prune(time.Now())

	var err error
	gone := r.Owner == "" && len(r.Attempts) == 0 && !r.good(time.Now())
	if gone {
		err = i.store.remove(name)
	} else {
		err = i.store.save(r)
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	h := i.hosts[name]
	if h == nil {
		h = &host{}
		i.hosts[name] = h
	}
	h.record = r
	if r.Chain != before || h.served == nil {
		h.served = r.pair()
	}
	if gone && !h.busy { // otherwise it is soon looked after once more
		delete(i.hosts, name)
	}
	return nil
}

func (i *Issuer) wakeUp() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}
