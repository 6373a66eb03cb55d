package webspace_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// Whatever happened, and whatever failed meanwhile: once it is quiet, the routes are what the instances and users say.
func TestRoutesAreWhatTheStateSays(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { model(t, uint64(seed)) })
	}
}

func FuzzRoutesAreWhatTheStateSays(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(model)
}

const modelUsers = 8

func model(t *testing.T, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		c := &chaos{random: rand.New(rand.NewPCG(seed, 1))}
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			populate(w, modelUsers)
			if c.chance(0.3) {
				w.opts.Mode = webspace.Inline
			}
			w.opts.Settle, w.opts.Drain = 200*time.Millisecond, 200*time.Millisecond
			f.BootDelay, f.StopDelay = c.until(time.Second), c.until(time.Second)
			f.Events = runtimetest.EventFaults{Drop: c.float() / 3, Double: c.float() / 3, Reorder: c.float() / 3, Seed: seed}
			if c.watched = c.chance(0.5); c.watched {
				// Every change is heard of, so that nothing may depend on reading everything now and then.
				w.opts.Resync = 24 * time.Hour
				f.Events.Drop = 0
			}
			w.opts.Provider = &faultyProvider{w.provider, c}
			f.Before = func(_ context.Context, op, _ string) error { return c.fault(op) }
			f.After = func(_ context.Context, op, _ string, err error) error { return cmp.Or(err, c.fault(op)) }
		})
		w.provider.Hook(func(_ context.Context, call providertest.Call) error { return c.fault(string(call.Op)) })
		for range 10 {
			c.set(c.float() / 5)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 6 {
						ctx, cancel := context.WithTimeout(t.Context(), c.until(20*time.Second))
						step(ctx, w, c)
						cancel()
						time.Sleep(c.until(time.Second))
					}
				})
			}
			wg.Wait()
			c.set(0)
			w.users.fail(nil)
			time.Sleep(10 * time.Second)
			w.runtime.Put(webspace.Instance{Name: "other"}) // brings out an event that was held back
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			check(t, w)
			if c.chance(0.3) {
				w.stop()
				w.start()
			}
		}
	})
}

// step does one thing to one webspace. Whether it succeeds does not matter.
func step(ctx context.Context, w *world, c *chaos) {
	id := webspaceUser(c.n(modelUsers))
	name := "ws-u" + id.String()
	domain := fmt.Sprintf("d%d.example.org", c.n(4))
	kinds := 24
	if c.watched {
		kinds = 21
	}
	switch c.n(kinds) {
	case 0, 1, 2, 3:
		if user, err := w.users.ByID(ctx, id); err == nil {
			_, _ = w.Create(ctx, user, webspace.CreateRequest{Image: "hello"})
		}
	case 4:
		_ = w.Delete(ctx, id)
	case 5, 6:
		_ = w.Start(ctx, id)
	case 7:
		_ = w.Stop(ctx, id)
	case 8:
		_ = w.Restart(ctx, id)
	case 9, 10, 11:
		if endpoint, err := w.Activate(ctx, proxy.Target{Webspace: name, Port: 80}); err == nil {
			time.Sleep(c.until(time.Second))
			var err error
			if c.chance(0.3) {
				err = errors.New("connection refused")
			}
			endpoint.Release(err)
		}
	case 12:
		w.runtime.Crash(name)
	case 13:
		w.runtime.PowerOff(name)
	case 14:
		w.runtime.SetAddress(name, netip.AddrFrom4([4]byte{127, 1, byte(c.n(256)), byte(c.n(256))}))
	case 15, 16:
		_ = w.AddDomain(ctx, id, domain)
	case 17:
		_ = w.RemoveDomain(ctx, id, domain)
	case 18, 19, 20: // somebody edits the record, copies the instance or takes it away
		switch i, err := w.runtime.Get(ctx, name); {
		case err != nil:
		case c.chance(0.15):
			_ = w.runtime.SetRecord(ctx, name, []byte("{"), "")
		case c.chance(0.15):
			w.runtime.Remove(name)
		case c.chance(0.15):
			i.Name = "ws-u" + webspaceUser(c.n(modelUsers)).String()
			i.Address = netip.AddrFrom4([4]byte{127, 2, byte(c.n(256)), byte(c.n(256))})
			w.runtime.Put(i)
		default:
			record := fmt.Sprintf(`{"user":%d,"config":{"httpPort":%d},"domains":[%q,"user%d.example.test"]}`, id, 80+c.n(2), domain, id)
			_ = w.runtime.SetRecord(ctx, name, []byte(record), "")
		}
	case 21: // users are renamed, removed, come back, differ in case
		switch c.n(4) {
		case 0:
			w.users.remove(id)
		case 1:
			w.users.add(id, "USER"+webspaceUser(c.n(modelUsers)).String())
		case 2:
			w.users.add(id, "not_a_label")
		default:
			w.users.add(id, "user"+id.String())
		}
	case 22:
		w.provider.Damage(name)
	case 23:
		if c.chance(0.5) {
			w.users.fail(errdefs.ErrUnavailable)
		} else {
			w.users.fail(nil)
		}
	}
}

// check compares the routes, and what the Manager says, with what follows from instances and users alone.
func check(t *testing.T, w *world) {
	instances, err := w.runtime.List(t.Context(), "ws-")
	require.NoError(t, err)
	slices.SortFunc(instances, func(a, b webspace.Instance) int { return cmp.Compare(a.Name, b.Name) })
	// What was found silent is tried again when somebody asks for it.
	for _, i := range instances {
		if i.Status == webspace.StatusRunning {
			for _, port := range []int{80, 81} {
				if endpoint, err := w.Activate(t.Context(), proxy.Target{Webspace: i.Name, Port: port}); err == nil {
					endpoint.Release(nil)
				}
			}
		}
	}
	w.settled()
	instances, err = w.runtime.List(t.Context(), "ws-")
	require.NoError(t, err)
	slices.SortFunc(instances, func(a, b webspace.Instance) int { return cmp.Compare(a.Name, b.Name) })

	owner := map[string]string{}
	want := map[string]provider.Route{}
	for _, i := range instances {
		var record struct {
			User     identity.UserID
			Instance string
			Creating bool
			Config   struct{ HTTPPort int }
			Domains  []string
		}
		record.Config.HTTPPort = 80
		if json.Unmarshal(i.Record, &record) != nil || "ws-u"+record.User.String() != i.Name || record.Instance != "" && record.Instance != i.Name {
			require.Contains(t, w.summary(idOf(i.Name)).Problem, "quarantined")
			continue
		}
		var claims []string
		if user, err := w.users.ByID(t.Context(), record.User); err == nil && !strings.Contains(user.Username, "_") {
			claims = append(claims, strings.ToLower(user.Username)+".example.test")
		}
		for _, domain := range record.Domains {
			if !strings.HasSuffix(domain, ".example.test") {
				claims = append(claims, domain)
			}
		}
		var has []string
		for _, claim := range claims {
			if owner[claim] == "" {
				owner[claim] = i.Name
				if !record.Creating {
					has = append(has, claim)
				}
			}
		}
		if len(has) == 0 {
			continue
		}
		slices.Sort(has)
		route := provider.Route{Name: i.Name, Hosts: hosts(slices.Compact(has)...), Backend: gatewayURL}
		if w.opts.Mode != webspace.Inline && i.Status == webspace.StatusRunning {
			route.Backend = fmt.Sprintf("http://%s:%d", i.Address, record.Config.HTTPPort)
		}
		want[i.Name] = route
		for _, host := range has {
			target, err := w.Route(host)
			require.NoError(t, err)
			require.Equal(t, proxy.Target{Webspace: i.Name, Port: record.Config.HTTPPort}, target)
		}
	}
	stored, err := w.provider.Routes(t.Context())
	require.NoError(t, err)
	have := map[string]provider.Route{}
	for _, route := range stored {
		have[route.Name] = route
	}
	require.Equal(t, want, have)
	require.Len(t, w.Summaries(), len(instances))
	for _, i := range instances {
		require.Equal(t, i.Status, w.summary(idOf(i.Name)).Status)
	}
}

func idOf(name string) (id identity.UserID) {
	_, _ = fmt.Sscanf(name, "ws-u%d", &id)
	return id
}

// faultyProvider makes changes whose answers are lost.
type faultyProvider struct {
	provider.Provider
	chaos *chaos
}

func (p *faultyProvider) Apply(ctx context.Context, changes provider.Changes) error {
	return cmp.Or(p.Provider.Apply(ctx, changes), p.chaos.fault("apply"))
}

// chaos is where luck comes from.
type chaos struct {
	mu     sync.Mutex
	random *rand.Rand
	// watched says that the Manager can know of all that happens without reading everything.
	watched bool
	faults  float64 // chance that a call fails
}

func (c *chaos) float() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.Float64()
}

func (c *chaos) n(n int) int                         { return int(c.float() * float64(n)) }
func (c *chaos) chance(p float64) bool               { return c.float() < p }
func (c *chaos) until(d time.Duration) time.Duration { return time.Duration(c.float() * float64(d)) }

func (c *chaos) set(faults float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = faults
}

func (c *chaos) fault(op string) error {
	if c.chance(0.3) {
		time.Sleep(c.until(100 * time.Millisecond)) // reordered, so to speak
	}
	c.mu.Lock()
	faults := c.faults
	c.mu.Unlock()
	if !c.chance(faults) {
		return nil
	}
	if op == "SetRecord" && c.chance(0.5) {
		return errdefs.ErrConflict
	}
	return errdefs.ErrUnavailable
}
