package issuertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Call is one thing a [Fake] is asked to do.
type Call struct {
	Op   Op
	Host provider.Host // of an order or cancel
}

// Op is the kind of a [Call].
type Op string

// The kinds of calls.
const (
	OpOrder  Op = "order"
	OpCancel Op = "cancel"
	OpOrders Op = "orders"
)

// Fake is an issuer in memory, with all that there is to one: a [tlsprovider.Watcher], [tlsprovider.Holder] and
// [tlsprovider.Challenger]. Certificates come with [Fake.Issue], and are self-signed. It counts what it is asked, fails when
// told to, and passes [Run]. It is safe for concurrent use.
type Fake struct {
	deployment string
	store      *fakeStore

	mu    sync.Mutex
	hook  func(context.Context, Call) error
	calls map[Op]int
}

var (
	_ tlsprovider.Issuer     = (*Fake)(nil)
	_ tlsprovider.Watcher    = (*Fake)(nil)
	_ tlsprovider.Holder     = (*Fake)(nil)
	_ tlsprovider.Challenger = (*Fake)(nil)
)

// fakeStore is what the Fakes of several deployments share.
type fakeStore struct {
	mu       sync.Mutex
	orders   map[fakeKey]*fakeOrder
	watchers map[*fakeWatcher]bool
	writes   int
}

type fakeKey struct {
	deployment string
	host       provider.Host
}

type fakeOrder struct {
	owner  string
	status tlsprovider.Status
	served *tls.Certificate
}

type fakeWatcher struct {
	deployment string
	changed    func(provider.Host)
}

// NewFake returns a Fake on an empty store of its own, for the deployment "fake".
func NewFake() *Fake {
	return &Fake{
		deployment: "fake",
		store:      &fakeStore{orders: map[fakeKey]*fakeOrder{}, watchers: map[*fakeWatcher]bool{}},
		calls:      map[Op]int{},
	}
}

// Deployment returns a Fake for another deployment on f's store, or, for the same one, what f would be after a restart.
func (f *Fake) Deployment(name string) *Fake {
	return &Fake{deployment: name, store: f.store, calls: map[Op]int{}}
}

// Hook has fn called before each call is carried out. What it returns, if not nil, is the outcome. It may wait, too, but
// then ends with ctx. nil removes it.
func (f *Fake) Hook(fn func(ctx context.Context, call Call) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = fn
}

// Calls returns how often f was asked to do op, failures included.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Writes returns how often the store was changed by orders and cancellations.
func (f *Fake) Writes() int {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	return f.store.writes
}

// Issue has the certificate of an ordered host come, a new one if there is one already. NotFound if it is not ordered.
func (f *Fake) Issue(host provider.Host) error {
	served, chain, key, err := selfSigned(host)
	if err != nil {
		return err
	}
	return f.change(host, func(o *fakeOrder) {
		o.served = served
		o.status = tlsprovider.Status{Certificate: provider.Certificate{Host: host, Chain: chain, Key: key}}
	})
}

// Fail gives the order of a host a problem, until Issue is called. NotFound if it is not ordered.
func (f *Fake) Fail(host provider.Host, problem string) error {
	return f.change(host, func(o *fakeOrder) { o.status.Problem = problem })
}

func (f *Fake) change(host provider.Host, change func(*fakeOrder)) error {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	order := f.store.orders[fakeKey{f.deployment, host}]
	if order == nil {
		return fmt.Errorf("order of %s: %w", host, errdefs.ErrNotFound)
	}
	change(order)
	for watcher := range f.store.watchers {
		if watcher.deployment == f.deployment {
			watcher.changed(host)
		}
	}
	return nil
}

func (f *Fake) called(ctx context.Context, call Call) error {
	f.mu.Lock()
	f.calls[call.Op]++
	hook := f.hook
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, call); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Order implements [tlsprovider.Issuer].
func (f *Fake) Order(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
	if err := f.called(ctx, Call{OpOrder, order.Host}); err != nil {
		return tlsprovider.Status{}, err
	}
	if err := order.Validate(); err != nil {
		return tlsprovider.Status{}, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	key := fakeKey{f.deployment, order.Host}
	have := f.store.orders[key]
	if have == nil {
		have = &fakeOrder{}
		f.store.orders[key] = have
	}
	if have.owner != order.Owner {
		have.owner = order.Owner
		f.store.writes++
	}
	return have.status, nil
}

// Cancel implements [tlsprovider.Issuer].
func (f *Fake) Cancel(ctx context.Context, host provider.Host) error {
	if err := f.called(ctx, Call{OpCancel, host}); err != nil {
		return err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if key := (fakeKey{f.deployment, host}); f.store.orders[key] != nil {
		delete(f.store.orders, key)
		f.store.writes++
	}
	return nil
}

// Orders implements [tlsprovider.Issuer].
func (f *Fake) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	if err := f.called(ctx, Call{Op: OpOrders}); err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	var orders []tlsprovider.Order
	for key, order := range f.store.orders {
		if key.deployment == f.deployment {
			orders = append(orders, tlsprovider.Order{Host: key.host, Owner: order.owner})
		}
	}
	slices.SortFunc(orders, byHost)
	return orders, nil
}

// Watch implements [tlsprovider.Watcher].
func (f *Fake) Watch(ctx context.Context, changed func(provider.Host)) error {
	watcher := &fakeWatcher{f.deployment, changed}
	f.store.mu.Lock()
	f.store.watchers[watcher] = true
	f.store.mu.Unlock()
	<-ctx.Done()
	f.store.mu.Lock()
	delete(f.store.watchers, watcher)
	f.store.mu.Unlock()
	return ctx.Err()
}

// GetCertificate implements [tlsprovider.Holder].
func (f *Fake) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host, err := provider.ParseHost(hello.ServerName)
	if err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if order := f.store.orders[fakeKey{f.deployment, host}]; order != nil && order.served != nil {
		return order.served, nil
	}
	return nil, fmt.Errorf("certificate of %s: %w", host, errdefs.ErrNotFound)
}

// HandleChallenge implements [tlsprovider.Challenger]: no challenge is ever under way.
func (*Fake) HandleChallenge(http.ResponseWriter, *http.Request) bool { return false }

func selfSigned(host provider.Host) (served *tls.Certificate, chain string, key provider.PrivateKey, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		DNSNames:     []string{host.String()},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, "", "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, "", "", err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, "", "", err
	}
	return &pair, string(certPEM), provider.PrivateKey(keyPEM), nil
}
