package webspace_test

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestRouteFollowsTheInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		w.settled()
		route, ok := w.provider.Route(name)
		require.True(t, ok)
		require.Equal(t, provider.Route{Name: name, Hosts: hosts("alice.example.test"), Backend: gatewayURL}, route)

		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		require.Equal(t, w.direct(name), w.backend(name))

		require.NoError(t, w.AddDomain(t.Context(), 1000, "Alice.Example.ORG."))
		w.settled()
		route, _ = w.provider.Route(name)
		require.Equal(t, hosts("alice.example.org", "alice.example.test"), route.Hosts)

		port := 8080
		_, err := w.SetConfig(t.Context(), 1000, webspace.ConfigChange{HTTPPort: &port})
		require.NoError(t, err)
		w.settled()
		require.Equal(t, "http://"+netip.AddrPortFrom(w.instance(name).Address, 8080).String(), w.backend(name))

		w.runtime.Crash(name)
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name))

		require.NoError(t, w.Delete(t.Context(), 1000))
		w.settled()
		require.Empty(t, w.backend(name))
		require.Empty(t, w.Summaries())
	})
}

func TestInlineRoutesNeverMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.Mode = webspace.Inline })
		name := w.create(1000)
		w.settled()
		for range 3 {
			require.NoError(t, w.Start(t.Context(), 1000))
			w.settled()
			require.NoError(t, w.Stop(t.Context(), 1000))
			w.settled()
		}
		require.Equal(t, gatewayURL, w.backend(name))
		require.Equal(t, 1, w.provider.Calls(providertest.OpPut))
		require.NoError(t, w.Delete(t.Context(), 1000))
		w.settled()
		require.Empty(t, w.backend(name))
	})
}

// The reverse proxy has to be off an address before what listens there goes.
func TestRouteMovesBeforeTheInstanceEnds(t *testing.T) {
	ends := map[string]func(*world) error{
		"stop":    func(w *world) error { return w.Stop(w.t.Context(), 1000) },
		"restart": func(w *world) error { return w.Restart(w.t.Context(), 1000) },
		"delete":  func(w *world) error { return w.Delete(w.t.Context(), 1000) },
	}
	for op, end := range ends {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w *world
				var ended, moved time.Time
				w = newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
					f.Before = func(_ context.Context, op, name string) error {
						if (op == "Stop" || op == "Restart") && ended.IsZero() {
							ended = time.Now()
							if op == "delete" {
								require.Empty(t, w.backend(name))
							} else {
								require.NotEqual(t, w.direct(name), w.backend(name))
							}
						}
						return nil
					}
				})
				name := w.create(1000)
				require.NoError(t, w.Start(t.Context(), 1000))
				w.settled()
				require.Equal(t, w.direct(name), w.backend(name))
				w.provider.Hook(func(_ context.Context, call providertest.Call) error {
					if moved.IsZero() && (call.Op == providertest.OpPut || call.Op == providertest.OpDelete) {
						moved = time.Now()
					}
					return nil
				})
				require.NoError(t, end(w))
				require.GreaterOrEqual(t, ended.Sub(moved), 3*time.Second)
			})
		})
	}
}

func TestRestartOfTheDaemonMovesNoRouteOfARunningSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		up, down, gone := w.create(1000), w.create(1001), w.create(1002)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		w.stop()
		w.runtime.Remove(gone)
		w.provider.Hook(func(_ context.Context, call providertest.Call) error {
			if call.Op == providertest.OpPut || call.Op == providertest.OpDelete {
				require.Equal(t, gone, call.Route)
			}
			return nil
		})
		w.start()
		w.settled()
		require.Equal(t, w.direct(up), w.backend(up))
		require.Equal(t, gatewayURL, w.backend(down))
		require.Empty(t, w.backend(gone))
	})
}

func TestUserRenamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		w.settled()
		w.users.add(1000, "Alicia")
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		route, _ := w.provider.Route(name)
		require.Equal(t, hosts("alicia.example.test"), route.Hosts)
		_, err := w.Route("alice.example.test")
		require.True(t, errdefs.IsNotFound(err))
		w.users.remove(1000)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		require.Empty(t, w.backend(name))
		require.Contains(t, w.summary(1000).Problem, "no user 1000")
	})
}

func TestDriftIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		w.settled()
		orphan := provider.Route{Name: "ws-u77", Hosts: hosts("x.example.test"), Backend: gatewayURL}
		require.NoError(t, w.provider.Apply(t.Context(), provider.Changes{Put: []provider.Route{orphan}}))
		w.provider.Damage(name)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		require.Equal(t, gatewayURL, w.backend(name))
		require.Empty(t, w.backend("ws-u77"))

		applied := w.provider.Calls(providertest.OpApply)
		w.runtime.Emit(webspace.Event{})
		time.Sleep(time.Hour)
		require.Equal(t, applied, w.provider.Calls(providertest.OpApply), "nothing had changed")

		w.provider.Damage(name)
		require.NoError(t, w.Sync(t.Context(), 1000))
		require.Equal(t, gatewayURL, w.backend(name))
	})
}

func TestOneEventCostsOneRead(t *testing.T) {
	for _, n := range []int{100, 2000} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) { populate(w, n) })
			fill(w, n)
			w.settled()
			calls := func() []int {
				var calls []int
				for _, op := range []string{"Get", "List", "State", "Start", "SetRecord"} {
					calls = append(calls, w.runtime.Calls(op))
				}
				return append(calls, w.provider.Calls(providertest.OpApply), w.provider.Calls(providertest.OpRoutes), w.users.asked)
			}
			before := calls()
			for range 50 { // a burst is one
				w.runtime.Emit(webspace.Event{Instance: "ws-u2000"})
			}
			time.Sleep(90 * time.Millisecond)
			synctest.Wait()
			before[0]++
			require.Equal(t, before, calls(), "with %d webspaces", n)
		})
	}
}

func TestFullSyncsAreSpaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.settled()
		lists := w.runtime.Calls("List")
		for range 1000 {
			w.runtime.Emit(webspace.Event{})
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, w.runtime.Calls("List")-lists, 12)
	})
}
