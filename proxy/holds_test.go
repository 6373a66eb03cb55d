package proxy_test

import (
	"net/netip"
	"sync"
	"testing"
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
