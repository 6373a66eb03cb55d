package issuertest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/issuertest"
)

func TestFake(t *testing.T) {
	issuertest.Run(t, func(*testing.T) issuertest.Harness { return harness(nil) })
}

// harness is a store of Fakes, each wrapped by breakIt if that is not nil.
func harness(breakIt func(*issuertest.Fake) tlsprovider.Issuer) issuertest.Harness {
	root := issuertest.NewFake()
	var mu sync.Mutex
	away := false
	foreign := root.Deployment("foreign")
	deployment := func(name string) *issuertest.Fake {
		f := root.Deployment(name)
		f.Hook(func(ctx context.Context, _ issuertest.Call) error {
			mu.Lock()
			defer mu.Unlock()
			if away && ctx.Err() == nil {
				return errdefs.ErrUnavailable
			}
			return nil
		})
		return f
	}
	h := issuertest.Harness{
		Open: func(name string) (tlsprovider.Issuer, error) {
			if breakIt == nil {
				return deployment(name), nil
			}
			return breakIt(deployment(name)), nil
		},
		Issue: func(name string, host provider.Host) error { return deployment(name).Issue(host) },
		Fail: func(name string, host provider.Host) error {
			// It is about an order that is still to come.
			if _, err := deployment(name).Order(context.Background(), tlsprovider.Order{Host: host, Owner: "ws-u1"}); err != nil {
				return err
			}
			return deployment(name).Fail(host, "DNS does not point here")
		},
		Away: func() func() {
			set := func(is bool) { mu.Lock(); defer mu.Unlock(); away = is }
			set(true)
			return func() { set(false) }
		},
		Writes: root.Writes,
		WriteForeign: func(_ string, host provider.Host) error {
			_, err := foreign.Order(context.Background(), tlsprovider.Order{Host: host, Owner: "foreign"})
			return err
		},
		ReadForeign: func() ([]byte, error) {
			orders, err := foreign.Orders(context.Background())
			var text []byte
			for _, o := range orders {
				text = append(text, o.Host.String()+" "+o.Owner+"\n"...)
			}
			return text, err
		},
	}
	return h
}

// defect is an issuer with one fault: what its functions leave out is done as it should be.
type defect struct {
	*issuertest.Fake
	order     func(context.Context, tlsprovider.Order) (tlsprovider.Status, error)
	cancel    func(context.Context, provider.Host) error
	orders    func(context.Context) ([]tlsprovider.Order, error)
	watch     func(context.Context, func(provider.Host)) error
	get       func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	challenge func(http.ResponseWriter, *http.Request) bool
}

func (d defect) Order(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
	if d.order != nil {
		return d.order(ctx, order)
	}
	return d.Fake.Order(ctx, order)
}

func (d defect) Cancel(ctx context.Context, host provider.Host) error {
	if d.cancel != nil {
		return d.cancel(ctx, host)
	}
	return d.Fake.Cancel(ctx, host)
}

func (d defect) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	if d.orders != nil {
		return d.orders(ctx)
	}
	return d.Fake.Orders(ctx)
}

func (d defect) Watch(ctx context.Context, changed func(provider.Host)) error {
	if d.watch != nil {
		return d.watch(ctx, changed)
	}
	return d.Fake.Watch(ctx, changed)
}

func (d defect) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if d.get != nil {
		return d.get(hello)
	}
	return d.Fake.GetCertificate(hello)
}

func (d defect) HandleChallenge(w http.ResponseWriter, r *http.Request) bool {
	if d.challenge != nil {
		return d.challenge(w, r)
	}
	return d.Fake.HandleChallenge(w, r)
}

// defects has, by name, a fault and the subtest that has to find it.
var defects = map[string]struct {
	found   string
	breakIt func(*issuertest.Fake) tlsprovider.Issuer
}{
	"refuses a second order": {"Idempotent", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			status, err := f.Order(ctx, order)
			if status.Certificate != (provider.Certificate{}) {
				return status, errdefs.ErrAlreadyExists
			}
			return status, err
		}}
	}},
	"writes what stands again": {"Idempotent", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			other := order
			other.Owner = "nobody"
			_, err := f.Order(ctx, other)
			status, again := f.Order(ctx, order)
			return status, errors.Join(err, again)
		}}
	}},
	"an unknown cancel is NotFound": {"Empty", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, cancel: func(ctx context.Context, host provider.Host) error {
			writes := f.Writes()
			if err := f.Cancel(ctx, host); err != nil || f.Writes() != writes {
				return err
			}
			return errdefs.ErrNotFound
		}}
	}},
	"never cancels": {"OrderIssueCancel", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, cancel: func(ctx context.Context, _ provider.Host) error { return ctx.Err() }}
	}},
	"gives another host's certificate": {"OrderIssueCancel", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			status, err := f.Order(ctx, order)
			if status.Certificate.Host != (provider.Host{}) {
				status.Certificate.Host, _ = provider.ParseHost("other.example.org")
			}
			return status, err
		}}
	}},
	"keeps the first owner": {"Owner", func(f *issuertest.Fake) tlsprovider.Issuer {
		var mu sync.Mutex
		owners := map[provider.Host]string{}
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			mu.Lock()
			defer mu.Unlock()
			if owners[order.Host] == "" {
				owners[order.Host] = order.Owner
			}
			order.Owner = owners[order.Host]
			return f.Order(ctx, order)
		}}
	}},
	"takes any owner": {"Invalid", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			if order.Validate() != nil {
				order.Owner = "anybody"
			}
			return f.Order(ctx, order)
		}}
	}},
	"forgets on restart": {"Reopened", func(f *issuertest.Fake) tlsprovider.Issuer {
		var mu sync.Mutex
		own := map[provider.Host]bool{}
		return defect{
			Fake: f,
			order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
				mu.Lock()
				defer mu.Unlock()
				own[order.Host] = true
				return f.Order(ctx, order)
			},
			orders: func(ctx context.Context) ([]tlsprovider.Order, error) {
				mu.Lock()
				defer mu.Unlock()
				orders, err := f.Orders(ctx)
				var kept []tlsprovider.Order
				for _, order := range orders {
					if own[order.Host] {
						kept = append(kept, order)
					}
				}
				return kept, err
			},
		}
	}},
	"makes errors of problems": {"Problem", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			status, err := f.Order(ctx, order)
			if err == nil && status.Problem != "" {
				err = errors.New(status.Problem)
			}
			return status, err
		}}
	}},
	"tells no problem": {"Problem", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			status, err := f.Order(ctx, order)
			status.Problem = ""
			return status, err
		}}
	}},
	"denies what is away": {"Away", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			status, err := f.Order(ctx, order)
			if errdefs.IsUnavailable(err) {
				err = errdefs.ErrPermissionDenied
			}
			return status, err
		}}
	}},
	"has no orders while it is away": {"Away", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, orders: func(ctx context.Context) ([]tlsprovider.Order, error) {
			orders, err := f.Orders(ctx)
			if errdefs.IsUnavailable(err) {
				return nil, nil
			}
			return orders, err
		}}
	}},
	"cancels what is foreign": {"Foreign", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, cancel: func(ctx context.Context, host provider.Host) error {
			return errors.Join(f.Cancel(ctx, host), f.Deployment("foreign").Cancel(ctx, host))
		}}
	}},
	"sees what is foreign": {"Foreign", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, orders: func(ctx context.Context) ([]tlsprovider.Order, error) {
			own, err := f.Orders(ctx)
			others, _ := f.Deployment("foreign").Orders(ctx)
			return append(own, others...), err
		}}
	}},
	"shares its orders among deployments": {"Deployments", func(f *issuertest.Fake) tlsprovider.Issuer {
		return f.Deployment("one")
	}},
	"ignores its context": {"Cancelled", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{
			Fake: f,
			order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
				return f.Order(context.WithoutCancel(ctx), order)
			},
			cancel: func(ctx context.Context, host provider.Host) error { return f.Cancel(context.WithoutCancel(ctx), host) },
			orders: func(ctx context.Context) ([]tlsprovider.Order, error) { return f.Orders(context.WithoutCancel(ctx)) },
		}
	}},
	"loses concurrent orders": {"Concurrent", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			before, err := f.Orders(ctx)
			if err != nil {
				return tlsprovider.Status{}, err
			}
			status, err := f.Order(ctx, order)
			if after, _ := f.Orders(ctx); len(after) > len(before)+1 || len(after) == 8 {
				_ = f.Cancel(ctx, after[len(after)-1].Host)
			}
			return status, err
		}}
	}},
	"takes a dot for a dash": {"Hosts", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, order: func(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
			if order.Host.String() == "a.b.example" {
				order.Host, _ = provider.ParseHost("a-b.example")
			}
			return f.Order(ctx, order)
		}}
	}},
	"returns one page": {"Thousand", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, orders: func(ctx context.Context) ([]tlsprovider.Order, error) {
			orders, err := f.Orders(ctx)
			return orders[:min(len(orders), 500)], err
		}}
	}},
	"tells nobody": {"Watch", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, watch: func(ctx context.Context, _ func(provider.Host)) error {
			<-ctx.Done()
			return ctx.Err()
		}}
	}},
	"watches once": {"Watch", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, watch: func(context.Context, func(provider.Host)) error { return nil }}
	}},
	"has a default certificate": {"Hold", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, get: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c, err := f.GetCertificate(hello); err == nil {
				return c, nil
			}
			return &tls.Certificate{}, nil
		}}
	}},
	"orders what it is asked for": {"Hold", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, get: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if host, err := provider.ParseHost(hello.ServerName); err == nil {
				_, _ = f.Order(context.Background(), tlsprovider.Order{Host: host, Owner: "anybody"})
			}
			return f.GetCertificate(hello)
		}}
	}},
	"answers every challenge": {"Challenge", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, challenge: func(http.ResponseWriter, *http.Request) bool { return true }}
	}},
	"writes before it declines": {"Challenge", func(f *issuertest.Fake) tlsprovider.Issuer {
		return defect{Fake: f, challenge: func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusNotFound)
			return false
		}}
	}},
	"closes once": {"Close", func(f *issuertest.Fake) tlsprovider.Issuer { return &closesOnce{Fake: f} }},
}

type closesOnce struct {
	*issuertest.Fake
	mu     sync.Mutex
	closed bool
}

func (c *closesOnce) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.New("closed already")
	}
	c.closed = true
	return nil
}

const brokenEnv = "ISSUERTEST_BROKEN"

// TestBroken runs the suite on each defect, in a process of its own because a failed subtest can not be undone.
func TestBroken(t *testing.T) {
	if name := os.Getenv(brokenEnv); name != "" {
		issuertest.Run(t, func(*testing.T) issuertest.Harness { return harness(defects[name].breakIt) })
		return
	}
	for name, d := range defects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBroken$/^"+d.found+"$", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "the suite accepts an issuer that %s:\n%s", name, out)
			require.Contains(t, string(out), "--- FAIL: TestBroken/"+d.found)
			require.NotContains(t, string(out), "DATA RACE")
			require.NotContains(t, string(out), "panic:")
		})
	}
}
