package webspace_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestSetConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		delay, port, on, off := 1500*time.Millisecond, 8080, true, false
		old, err := w.SetConfig(t.Context(), 1000, webspace.ConfigChange{StartupDelay: &delay})
		require.NoError(t, err)
		require.Equal(t, webspace.Config{StartupDelay: 3 * time.Second, HTTPPort: 80}, old)
		old, err = w.SetConfig(t.Context(), 1000, webspace.ConfigChange{HTTPPort: &port, SNIPassthrough: &off})
		require.NoError(t, err)
		require.Equal(t, webspace.Config{StartupDelay: delay, HTTPPort: 80}, old)
		got, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, webspace.Config{StartupDelay: delay, HTTPPort: port}, got.Config)

		low, high, none, late, negative := -time.Nanosecond, time.Minute+1, 0, 65536, -1
		for _, change := range []webspace.ConfigChange{
			{StartupDelay: &low}, {StartupDelay: &high}, {HTTPPort: &none}, {HTTPPort: &late}, {HTTPPort: &negative}, {SNIPassthrough: &on},
		} {
			_, err := w.SetConfig(t.Context(), 1000, change)
			require.True(t, errdefs.IsInvalidArgument(err))
		}
		again, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, got, again)
		_, err = w.SetConfig(t.Context(), 1001, webspace.ConfigChange{HTTPPort: &port})
		require.True(t, errdefs.IsNotFound(err))
	})
}

// Changes made at the same time all survive, whoever else writes.
func TestConcurrentChangesSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conflicts atomic.Int32
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "SetRecord" && rand.N(2) == 0 {
					conflicts.Add(1)
					return errdefs.ErrConflict
				}
				time.Sleep(rand.N(time.Millisecond))
				return nil
			}
		})
		_, err := w.Create(t.Context(), w.user(1000), hello)
		for errdefs.IsConflict(err) {
			_, err = w.Create(t.Context(), w.user(1000), hello)
		}
		require.NoError(t, err)
		// A second daemon on the same runtime.
		other, err := webspace.NewManager(w.runtime, w.users, "example.test", &w.opts)
		require.NoError(t, err)
		defer other.Close()
		var wg sync.WaitGroup
		for n := range 16 {
			wg.Go(func() {
				switch n % 3 {
				case 0:
					require.NoError(t, w.AddDomain(t.Context(), 1000, fmt.Sprintf("d%d.example.org", n)))
				case 1:
					_, err := w.AddPort(t.Context(), 1000, 50000+n, n)
					require.NoError(t, err)
				case 2:
					delay := time.Duration(n) * time.Second
					_, err := other.SetConfig(t.Context(), 1000, webspace.ConfigChange{StartupDelay: &delay})
					require.NoError(t, err)
				}
			})
		}
		wg.Wait()
		got, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Len(t, got.Domains, 6)
		require.Len(t, got.Ports, 5)
		require.NotEqual(t, 3*time.Second, got.Config.StartupDelay)
		require.Positive(t, conflicts.Load())
	})
}

func TestConflictWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "SetRecord" && busy.Load() {
					return errdefs.ErrConflict
				}
				return nil
			}
		})
		w.create(1000)
		busy.Store(true)
		start := time.Now()
		require.True(t, errdefs.IsConflict(w.AddDomain(t.Context(), 1000, "a.example.org")))
		require.Less(t, time.Since(start), 15*time.Second)
		busy.Store(false)
		require.NoError(t, w.AddDomain(t.Context(), 1000, "a.example.org"))
	})
}

func TestPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
			populate(w, 10)
			w.opts.Ports = webspace.PortRange{First: 50000, Last: 50029, Max: 4}
		})
		fill(w, 10)
		w.settled()
		var mu sync.Mutex
		taken, refused := map[int]bool{}, 0
		var wg sync.WaitGroup
		for n := range 10 {
			for range 5 {
				wg.Go(func() {
					port, err := w.AddPort(t.Context(), webspaceUser(n), 0, 22)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
						refused++
						return
					}
					require.False(t, taken[port])
					taken[port] = true
					require.True(t, port >= 50000 && port <= 50029)
				})
			}
		}
		wg.Wait()
		require.Equal(t, 50, len(taken)+refused)
		// Who came while others were about to be refused may have met with no free port; now all 30 can be had.
		for n := range 10 {
			for {
				port, err := w.AddPort(t.Context(), webspaceUser(n), 0, 22)
				if err != nil {
					require.True(t, errdefs.IsResourceExhausted(err))
					break
				}
				require.False(t, taken[port])
				taken[port] = true
			}
		}
		require.Len(t, taken, 30)
		for n := range 10 {
			got, err := w.Get(t.Context(), webspaceUser(n))
			require.NoError(t, err)
			require.LessOrEqual(t, len(got.Ports), 4)
			for port := range got.Ports {
				require.True(t, taken[port])
				_, err := w.AddPort(t.Context(), webspaceUser((n+1)%10), port, 22)
				require.True(t, errdefs.IsAlreadyExists(err))
				require.NoError(t, w.RemovePort(t.Context(), webspaceUser(n), port))
				require.True(t, errdefs.IsNotFound(w.RemovePort(t.Context(), webspaceUser(n), port)))
			}
		}
		port, err := w.AddPort(t.Context(), webspaceUser(0), 50007, 65535)
		require.NoError(t, err)
		require.Equal(t, 50007, port)
		for _, ports := range [][2]int{{49999, 22}, {50030, 22}, {-1, 22}, {50001, 0}, {50001, 65536}, {0, 0}, {0, -1}, {80, 80}} {
			_, err := w.AddPort(t.Context(), webspaceUser(0), ports[0], ports[1])
			require.True(t, errdefs.IsInvalidArgument(err), "%v", ports)
		}
		_, err = w.AddPort(t.Context(), 1, 0, 22)
		require.True(t, errdefs.IsNotFound(err))
		require.NoError(t, w.Delete(t.Context(), webspaceUser(0)))
		_, err = w.AddPort(t.Context(), webspaceUser(1), 50007, 22)
		require.NoError(t, err, "a deleted webspace's port is free")
	})
}

func TestDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.MaxDomains = 3 })
		w.create(1000)
		w.create(1001)
		var won atomic.Int32
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				switch err := w.AddDomain(t.Context(), identity.UserID(1000+n%2), "Shared.Example.ORG"); {
				case err == nil:
					won.Add(1)
				default:
					require.True(t, errdefs.IsAlreadyExists(err))
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, won.Load())
		for _, domain := range []string{"example.test", "alice.example.test", "x.bob.example.test", "test", "co.uk", "*.example.org", "1.2.3.4", "unproven.example.org", "", "a..b"} {
			require.True(t, errdefs.IsInvalidArgument(w.AddDomain(t.Context(), 1000, domain)), domain)
		}
		require.True(t, errdefs.IsNotFound(w.AddDomain(t.Context(), 1002, "a.example.org")))
		for n := 0; !errdefs.IsResourceExhausted(w.AddDomain(t.Context(), 1001, fmt.Sprintf("d%d.example.org", n))); n++ {
			require.Less(t, n, 3)
		}
		got, err := w.Domains(t.Context(), w.user(1001))
		require.NoError(t, err)
		require.Len(t, got, 4)
		require.Equal(t, "bob.example.test", got[0])
		require.NoError(t, w.RemoveDomain(t.Context(), 1001, strings.ToUpper(got[3])+"."))
		require.True(t, errdefs.IsNotFound(w.RemoveDomain(t.Context(), 1001, got[3])))
		require.True(t, errdefs.IsNotFound(w.RemoveDomain(t.Context(), 1001, "bob.example.test")))
		require.True(t, errdefs.IsNotFound(w.RemoveDomain(t.Context(), 1001, "")))
		require.NoError(t, w.AddDomain(t.Context(), 1001, "free.example.org"))
	})
}

func TestNoCustomDomainsWithoutProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.VerifyDomain = nil })
		w.create(1000)
		require.True(t, errdefs.IsInvalidArgument(w.AddDomain(t.Context(), 1000, "a.example.org")))
	})
}
