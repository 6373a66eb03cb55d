package webspace_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// Clients that leave before their boots begin leave no boots behind, and whoever stays is not behind them.
func TestBootsThatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 80
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			populate(w, n+1)
			f.BootDelay = time.Second
		})
		fill(w, n+1)
		w.settled()
		target := func(i int) proxy.Target { return proxy.Target{Webspace: "ws-u" + webspaceUser(i).String(), Port: 80} }
		leaving, leave := context.WithCancel(t.Context())
		for i := range n {
			w.first(leaving, target(i))
		}
		time.Sleep(300 * time.Millisecond)
		leave()
		began := time.Now()
		require.NoError(t, <-w.first(t.Context(), target(n)))
		require.Less(t, time.Since(began), 3*time.Second)
		time.Sleep(5 * time.Minute)
		require.LessOrEqual(t, w.runtime.Calls("Start"), w.Stats().BootSlots+1)
	})
}

// Connections to many silent ports of one webspace take one boot slot, for its one boot.
func TestSilentPortsTakeNoBootSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			f.BootDelay = 200 * time.Millisecond
			w.opts.Probe = func(ctx context.Context, at netip.AddrPort) error {
				if at.Port() > 1000 {
					return errors.New("connection refused")
				}
				return w.probe(ctx, at)
			}
			w.opts.Defaults.StartupDelay = w.opts.MaxStartupDelay
		})
		w.create(1000)
		w.create(1001)
		w.settled()
		for n := range 64 {
			w.first(t.Context(), proxy.Target{Webspace: "ws-u1000", Port: 2000 + n})
		}
		synctest.Wait()
		began := time.Now()
		require.NoError(t, <-w.first(t.Context(), proxy.Target{Webspace: "ws-u1001", Port: 80}))
		require.Less(t, time.Since(began), 2*time.Second)
	})
}

// A webspace that can not be booted, and is not tried for that reason, takes no wakes from those who ask for it.
func TestNoBootIsNoWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Start" {
					return errors.New("no space left on device")
				}
				return nil
			}
		})
		w.create(1000)
		w.settled()
		require.False(t, w.Runs("ws-u1000"))
		for range 3 {
			require.Error(t, <-w.first(t.Context(), proxy.Target{Webspace: "ws-u1000", Port: 80}))
		}
		require.True(t, w.Runs("ws-u1000"), "it is not booted now")
		time.Sleep(10 * time.Minute)
		require.False(t, w.Runs("ws-u1000"), "it may be tried again")
		require.False(t, w.Runs("ws-u1001"))
	})
}
