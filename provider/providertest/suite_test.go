package providertest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
)

func TestFake(t *testing.T) {
	providertest.Run(t, func(*testing.T) providertest.Harness { return harness(nil) })
}

// TestLimited runs the suite on a provider that can not do all.
func TestLimited(t *testing.T) {
	providertest.Run(t, func(*testing.T) providertest.Harness {
		h := harness(func(f *providertest.Fake) provider.Provider {
			return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
				var errs []error
				c.Put = slices.DeleteFunc(slices.Clone(c.Put), func(r provider.Route) bool {
					limited := strings.HasPrefix(r.Backend, "tcp://") || len(r.Certificates) > 0
					if limited {
						errs = append(errs, &provider.RouteError{Route: r.Name, Err: errdefs.ErrInvalidArgument})
					}
					return limited
				})
				return errors.Join(append(errs, f.Apply(ctx, c))...)
			}}
		})
		h.HTTPOnly, h.Certificates, h.HasCertificate = true, nil, nil
		h.Private, h.Damage, h.WriteForeign, h.ReadForeign = true, nil, nil, nil
		return h
	})
}

// harness is a store of Fakes, each wrapped by breakIt if that is not nil.
func harness(breakIt func(*providertest.Fake) provider.Provider) providertest.Harness {
	root := providertest.NewFake()
	var mu sync.Mutex
	deployments := map[string]*providertest.Fake{}
	deployment := func(name string) *providertest.Fake {
		mu.Lock()
		defer mu.Unlock()
		if deployments[name] == nil {
			deployments[name] = root.Deployment(name)
		}
		return deployments[name]
	}
	// What the proxy sees of one route is read in one step, so that the broken providers' gaps can be seen.
	lookup := func(host provider.Host) (string, error) {
		mu.Lock()
		all := make([]*providertest.Fake, 0, len(deployments))
		for _, f := range deployments {
			all = append(all, f)
		}
		mu.Unlock()
		for _, f := range all {
			routes, err := f.Routes(context.Background())
			if err != nil {
				return "", err
			}
			for _, r := range routes {
				if slices.Contains(r.Hosts, host) {
					return r.Backend, nil
				}
			}
		}
		return "", nil
	}
	return providertest.Harness{
		Open: func(name string) (provider.Provider, error) {
			if breakIt == nil {
				return deployment(name), nil
			}
			return breakIt(deployment(name)), nil
		},
		Lookup: lookup,
		Damage: map[string]func(string, string) error{
			"edited": func(name, route string) error { deployment(name).Damage(route); return nil },
		},
		WriteForeign: func(name, _ string) error {
			return deployment(foreign).Apply(context.Background(), provider.Changes{Put: []provider.Route{{
				Name: "ws-u1", Backend: "http://198.18.9.9:80", Hosts: []provider.Host{mustHost("foreign.example.org")},
			}}})
		},
		ReadForeign: func() ([]byte, error) {
			routes, err := deployment(foreign).Routes(context.Background())
			return fmt.Append(nil, routes), err
		},
		Certificates: []providertest.CertificateKind{providertest.Secret, providertest.Resolver, providertest.PEM},
		HasCertificate: func(c provider.Certificate) (bool, error) {
			routes, err := deployment("one").Routes(context.Background())
			return slices.ContainsFunc(routes, func(r provider.Route) bool { return slices.Contains(r.Certificates, c) }), err
		},
	}
}

// foreign stands for everybody who is no deployment.
const foreign = "foreign"

func mustHost(s string) provider.Host {
	h, err := provider.ParseHost(s)
	if err != nil {
		panic(err)
	}
	return h
}

// defect is a provider with one fault: what its functions leave out is done as it should be.
type defect struct {
	provider.Provider
	routes func(context.Context) ([]provider.Route, error)
	apply  func(context.Context, provider.Changes) error
}

func (d defect) Routes(ctx context.Context) ([]provider.Route, error) {
	if d.routes != nil {
		return d.routes(ctx)
	}
	return d.Provider.Routes(ctx)
}

func (d defect) Apply(ctx context.Context, c provider.Changes) error {
	if d.apply != nil {
		return d.apply(ctx, c)
	}
	return d.Provider.Apply(ctx, c)
}

// defects has, by name, a fault and the subtest that has to find it.
var defects = map[string]struct {
	found   string
	breakIt func(*providertest.Fake) provider.Provider
}{
	"deletes before it puts": {"ReplacedInOneStep", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			for _, r := range c.Put {
				if err := f.Apply(ctx, provider.Changes{Delete: []string{r.Name}}); err != nil {
					return err
				}
				runtime.Gosched()
			}
			return f.Apply(ctx, c)
		}}
	}},
	"stops at the first failure": {"OneBadChange", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			for _, r := range c.Put {
				if err := f.Apply(ctx, provider.Changes{Put: []provider.Route{r}}); err != nil {
					return err
				}
			}
			return f.Apply(ctx, provider.Changes{Delete: c.Delete})
		}}
	}},
	"drops the error's type": {"OneBadChange", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			if err := f.Apply(ctx, c); err != nil {
				return errors.New(err.Error())
			}
			return nil
		}}
	}},
	"an unknown delete is NotFound": {"Idempotent", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			for _, name := range c.Delete {
				if _, ok := f.Route(name); !ok {
					return &provider.RouteError{Route: name, Err: errdefs.ErrNotFound}
				}
			}
			return f.Apply(ctx, c)
		}}
	}},
	"a second put is AlreadyExists": {"Idempotent", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			for _, r := range c.Put {
				if have, ok := f.Route(r.Name); ok && have.Equal(r) {
					return &provider.RouteError{Route: r.Name, Err: errdefs.ErrAlreadyExists}
				}
			}
			return f.Apply(ctx, c)
		}}
	}},
	"never deletes": {"PutReplaceDelete", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			return f.Apply(ctx, provider.Changes{Put: c.Put})
		}}
	}},
	"keeps the first backend": {"PutReplaceDelete", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			var put []provider.Route
			for _, r := range c.Put {
				if _, ok := f.Route(r.Name); !ok {
					put = append(put, r)
				}
			}
			return f.Apply(ctx, provider.Changes{Put: put, Delete: c.Delete})
		}}
	}},
	"forgets on restart": {"Reopened", func(f *providertest.Fake) provider.Provider {
		own := map[string]bool{}
		var mu sync.Mutex
		return defect{
			Provider: f,
			apply: func(ctx context.Context, c provider.Changes) error {
				mu.Lock()
				defer mu.Unlock()
				for _, r := range c.Put {
					own[r.Name] = true
				}
				return f.Apply(ctx, c)
			},
			routes: func(ctx context.Context) ([]provider.Route, error) {
				mu.Lock()
				defer mu.Unlock()
				routes, err := f.Routes(ctx)
				return slices.DeleteFunc(routes, func(r provider.Route) bool { return !own[r.Name] }), err
			},
		}
	}},
	"trusts its memory": {"Drift", func(f *providertest.Fake) provider.Provider {
		var mu sync.Mutex
		memory := map[string]provider.Route{}
		return defect{
			Provider: f,
			apply: func(ctx context.Context, c provider.Changes) error {
				mu.Lock()
				defer mu.Unlock()
				for _, r := range c.Put {
					memory[r.Name] = r
				}
				return f.Apply(ctx, c)
			},
			routes: func(ctx context.Context) ([]provider.Route, error) {
				mu.Lock()
				defer mu.Unlock()
				routes, err := f.Routes(ctx)
				for i, r := range routes {
					if r.Backend == "" {
						routes[i] = memory[r.Name]
					}
				}
				return routes, err
			},
		}
	}},
	"hides what is damaged": {"Drift", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, routes: func(ctx context.Context) ([]provider.Route, error) {
			routes, err := f.Routes(ctx)
			return slices.DeleteFunc(routes, func(r provider.Route) bool { return r.Backend == "" }), err
		}}
	}},
	"sees foreign entries": {"Foreign", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, routes: func(ctx context.Context) ([]provider.Route, error) {
			own, err := f.Routes(ctx)
			others, _ := f.Deployment(foreign).Routes(ctx)
			return append(own, others...), err
		}}
	}},
	"deletes foreign entries": {"Foreign", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			return errors.Join(f.Apply(ctx, c), f.Deployment(foreign).Apply(ctx, provider.Changes{Delete: c.Delete}))
		}}
	}},
	"shares its routes among deployments": {"Deployments", func(f *providertest.Fake) provider.Provider {
		return f.Deployment("one")
	}},
	"drops certificates": {"Certificates", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			c.Put = slices.Clone(c.Put)
			for i := range c.Put {
				c.Put[i].Certificates = nil
			}
			return f.Apply(ctx, c)
		}}
	}},
	"keeps the old certificate": {"Certificates", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			c.Put = slices.Clone(c.Put)
			for i, r := range c.Put {
				have, _ := f.Route(r.Name)
				if len(r.Certificates) > 0 && len(have.Certificates) == len(r.Certificates) {
					c.Put[i].Certificates = have.Certificates
				}
			}
			return f.Apply(ctx, c)
		}}
	}},
	"never removes certificates": {"Certificates", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			c.Put = slices.Clone(c.Put)
			for i, r := range c.Put {
				if have, ok := f.Route(r.Name); ok && len(r.Certificates) == 0 && !strings.HasPrefix(r.Backend, "tcp://") {
					c.Put[i].Certificates = have.Certificates
				}
			}
			return f.Apply(ctx, c)
		}}
	}},
	"has one certificate for all": {"Certificates", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, routes: func(ctx context.Context) ([]provider.Route, error) {
			routes, err := f.Routes(ctx)
			for _, r := range routes {
				for i := range r.Certificates {
					host := r.Certificates[i].Host
					r.Certificates[i] = r.Certificates[0]
					r.Certificates[i].Host = host
				}
			}
			return routes, err
		}}
	}},
	"writes what it can not say": {"UnsupportedCertificates", func(f *providertest.Fake) provider.Provider { return f }},
	"ignores its context": {"Cancelled", func(f *providertest.Fake) provider.Provider {
		return defect{
			Provider: f,
			apply: func(ctx context.Context, c provider.Changes) error {
				return f.Apply(context.WithoutCancel(ctx), c)
			},
			routes: func(ctx context.Context) ([]provider.Route, error) { return f.Routes(context.WithoutCancel(ctx)) },
		}
	}},
	"loses concurrent changes": {"Concurrent", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, apply: func(ctx context.Context, c provider.Changes) error {
			// Read all, change, write all: what others did in between is lost.
			all, err := f.Routes(ctx)
			if err != nil {
				return err
			}
			runtime.Gosched()
			return errors.Join(f.Apply(ctx, c), f.Apply(ctx, provider.Changes{Put: slices.DeleteFunc(all, func(r provider.Route) bool {
				return slices.Contains(c.Delete, r.Name) || slices.ContainsFunc(c.Put, func(p provider.Route) bool { return p.Name == r.Name })
			})}))
		}}
	}},
	"cuts long lists of hosts": {"Hosts", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, routes: func(ctx context.Context) ([]provider.Route, error) {
			routes, err := f.Routes(ctx)
			for i, r := range routes {
				routes[i].Hosts = r.Hosts[:min(len(r.Hosts), 50)]
			}
			return routes, err
		}}
	}},
	"returns one page": {"Thousand", func(f *providertest.Fake) provider.Provider {
		return defect{Provider: f, routes: func(ctx context.Context) ([]provider.Route, error) {
			routes, err := f.Routes(ctx)
			return routes[:min(len(routes), 500)], err
		}}
	}},
}

const brokenEnv = "PROVIDERTEST_BROKEN"

// TestBroken runs the suite on each defect, in a process of its own because a failed subtest can not be undone.
func TestBroken(t *testing.T) {
	if name := os.Getenv(brokenEnv); name != "" {
		providertest.Run(t, func(*testing.T) providertest.Harness {
			h := harness(defects[name].breakIt)
			if defects[name].found == "UnsupportedCertificates" {
				h.Certificates = []providertest.CertificateKind{providertest.PEM}
			}
			return h
		})
		return
	}
	for name, d := range defects {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBroken$/^"+d.found+"$", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "the suite accepts a provider that %s:\n%s", name, out)
			require.Contains(t, string(out), "--- FAIL: TestBroken/"+d.found)
			require.NotContains(t, string(out), "DATA RACE")
			require.NotContains(t, string(out), "panic:")
		})
	}
}
