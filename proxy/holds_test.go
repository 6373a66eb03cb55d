package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

func TestHoldsLimits(t *testing.T) {
	one, two, three := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("2001:db8::1")
	refused := func(t *testing.T, h *proxy.Holds, webspace string, source netip.Addr, reason string) {
		t.Helper()
		_, err := h.Acquire(webspace, source)
		require.True(t, errdefs.IsResourceExhausted(err), err)
		var failure *proxy.Failure
		require.ErrorAs(t, err, &failure)
		require.Equal(t, reason, failure.Reason)
		require.Equal(t, 5*time.Second, failure.RetryAfter)
	}
	acquire := func(t *testing.T, h *proxy.Holds, webspace string, source netip.Addr) func() {
		t.Helper()
		release, err := h.Acquire(webspace, source)
		require.NoError(t, err)
		return release
	}

	t.Run("each limit", func(t *testing.T) {
		h := proxy.NewHolds(&proxy.HoldLimits{Webspace: 2, Source: 3, Total: 4})
		releases := []func(){acquire(t, h, "a", one), acquire(t, h, "a", one)}
		refused(t, h, "a", two, "Too many requests are waiting for this webspace to start.")
		releases = append(releases, acquire(t, h, "b", one))
		refused(t, h, "c", one, "Too many requests from your address are waiting.")
		releases = append(releases, acquire(t, h, "c", two))
		refused(t, h, "d", three, "Too many requests are waiting at the moment.")
		require.Equal(t, proxy.HoldStats{Held: 4, Webspaces: 3, Sources: 2, RefusedWebspace: 1, RefusedSource: 1, RefusedTotal: 1}, h.Stats())
		for _, release := range releases {
			release()
			release() // once more does nothing
		}
		stats := h.Stats()
		require.Positive(t, stats.Waited)
		stats.Waited = 0
		require.Equal(t, proxy.HoldStats{Ended: 4, RefusedWebspace: 1, RefusedSource: 1, RefusedTotal: 1}, stats)
	})

	t.Run("sources", func(t *testing.T) {
		h := proxy.NewHolds(&proxy.HoldLimits{Source: 1})
		for _, pair := range [][2]string{
			{"198.18.0.1", "::ffff:198.18.0.1"},
			{"2001:db8::1", "2001:db8::ffff:0:0:1%eth0"},
		} {
			release := acquire(t, h, "a", netip.MustParseAddr(pair[0]))
			refused(t, h, "a", netip.MustParseAddr(pair[1]), "Too many requests from your address are waiting.")
			release()
		}
		release := acquire(t, h, "a", netip.Addr{})
		refused(t, h, "a", netip.Addr{}, "Too many requests from your address are waiting.")
		acquire(t, h, "a", netip.MustParseAddr("2001:db8:0:1::1"))()
		release()
		require.Zero(t, h.Stats().Held)
	})

	t.Run("defaults", func(t *testing.T) {
		h := proxy.NewHolds(nil)
		for range 64 {
			acquire(t, h, "a", one)
		}
		refused(t, h, "b", one, "Too many requests from your address are waiting.")
		for i := range 1024 - 64 {
			acquire(t, h, "a", netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}))
		}
		refused(t, h, "a", two, "Too many requests are waiting for this webspace to start.")
	})
}

func TestHoldsConcurrent(t *testing.T) {
	h := proxy.NewHolds(&proxy.HoldLimits{Total: 10})
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			for range 100 {
				if release, err := h.Acquire("a", netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})); err == nil {
					if held := h.Stats().Held; held > 10 {
						t.Errorf("%d held", held)
					}
					release()
				}
			}
		})
	}
	group.Wait()
	require.Zero(t, h.Stats().Held)
	require.Zero(t, h.Stats().Webspaces)
	require.Zero(t, h.Stats().Sources)
}

// Only who is the first to wait for a webspace wakes it.
func TestHoldsWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := proxy.NewHolds(nil)
		address := func(s string) netip.Addr { return netip.MustParseAddr(s) }
		woken := func(from string, n int) (woken int) {
			for i := range n {
				release, err := h.Acquire(fmt.Sprint("ws", i), address(from))
				if err == nil {
					woken++
					release()
				}
			}
			return woken
		}
		first, err := h.Acquire("popular", address("198.18.9.1"))
		require.NoError(t, err)
		for i := range 100 {
			join, err := h.Acquire("popular", netip.AddrFrom4([4]byte{198, 18, 9, byte(i)}))
			require.NoError(t, err)
			defer join()
		}
		require.Equal(t, 19, woken("198.18.9.2", 500))
		defer first()

		require.Equal(t, 20, woken("198.18.0.1", 500), "a scan")
		require.Zero(t, woken("198.18.0.200", 500), "its neighbour")
		require.Equal(t, 20, woken("198.18.1.1", 20), "another network")
		require.Equal(t, 20, woken("2001:db8::1", 500))
		require.Zero(t, woken("2001:db8:0:ff::1", 500))
		require.Equal(t, 20, woken("2001:db8:0:100::1", 20))

		_, err = h.Acquire("late", address("198.18.0.1"))
		require.True(t, errdefs.IsResourceExhausted(err))
		failure, ok := errors.AsType[*proxy.Failure](err)
		require.True(t, ok)
		require.Equal(t, 10*time.Second, failure.RetryAfter)
		time.Sleep(failure.RetryAfter)
		require.Equal(t, 1, woken("198.18.0.1", 500))
		time.Sleep(time.Hour)
		require.Equal(t, 20, woken("198.18.0.1", 500), "no more than that comes together")
		require.Positive(t, h.Stats().RefusedWakes)

		h = proxy.NewHolds(&proxy.HoldLimits{Wakes: -1})
		require.Equal(t, 500, woken("198.18.0.1", 500))
	})
}

// A scan of every port boots what one network may boot, and nobody pays for a webspace that runs.
func TestForwarderWakes(t *testing.T) {
	address := echo(t)
	const ports = 60
	var woken sync.Map
	activator := &fakeActivator{activate: func(_ context.Context, target proxy.Target) (netip.AddrPort, error) {
		woken.Store(target.Webspace, true)
		return address, nil
	}}
	h := forwarder(t, activator, &proxy.ForwarderOptions{Holds: proxy.NewHolds(&proxy.HoldLimits{Wakes: 5, WakeInterval: time.Hour})})
	var group sync.WaitGroup
	var served atomic.Int64
	for i := range ports {
		port := h.open(t, proxy.Target{Webspace: fmt.Sprint("ws", i), Port: 22})
		group.Go(func() {
			conn := dialPort(t, port)
			_, _ = conn.Write([]byte("x"))
			if n, _ := conn.Read(make([]byte, 1)); n == 1 {
				served.Add(1)
			}
		})
	}
	group.Wait()
	booted := 0
	woken.Range(func(any, any) bool { booted++; return true })
	require.Equal(t, 5, booted)
	require.EqualValues(t, 5, served.Load())
	require.EqualValues(t, ports-5, h.Stats().Holds.RefusedWakes)

	running := &awake{fakeActivator: activator}
	f := proxy.NewForwarder(running, &proxy.ForwarderOptions{
		ListenAddress: loopback, Holds: proxy.NewHolds(&proxy.HoldLimits{Wakes: 1, WakeInterval: time.Hour}),
	})
	defer func() { require.NoError(t, f.Shutdown(t.Context())) }()
	all := &harbour{f, activator}
	for i := range 10 {
		conn := dialPort(t, all.open(t, proxy.Target{Webspace: fmt.Sprint("ws", i), Port: 22}))
		echoes(t, conn, "x")
		require.NoError(t, conn.Close())
	}
	require.Zero(t, f.Stats().Holds.RefusedWakes)
}

// awake has webspaces that all run, although nobody knows yet whether they take connections.
type awake struct{ *fakeActivator }

func (awake) Runs(string) bool { return true }

// A proxy in front connects for many: only what is for one webspace, and all of it, is bounded.
func TestHoldsExempt(t *testing.T) {
	front := netip.MustParseAddr("198.18.0.10")
	h := proxy.NewHolds(&proxy.HoldLimits{Webspace: 5, Source: 2, Total: 8, Wakes: 1, Exempt: []netip.Prefix{netip.PrefixFrom(front, 32)}})
	for i := range 8 {
		_, err := h.Acquire([]string{"a", "b"}[i%2], netip.AddrFrom16(front.As16()))
		require.NoError(t, err)
	}
	_, err := h.Acquire("c", front)
	require.True(t, errdefs.IsResourceExhausted(err))
	stats := h.Stats()
	require.Equal(t, []uint64{0, 0, 1, 0}, []uint64{stats.RefusedWebspace, stats.RefusedSource, stats.RefusedTotal, stats.RefusedWakes})
}
