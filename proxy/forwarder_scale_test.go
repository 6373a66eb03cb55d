package proxy_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// firstFree is below what the kernel gives to outgoing connections, and above what others usually listen on.
const firstFree = 12000

// BenchmarkForwarderChange opens and closes a port among ten, and among all that there are by default. It should take the
// same time.
func BenchmarkForwarderChange(b *testing.B) {
	fill := func(address netip.Addr, n int) *harbour {
		h := forwarder(b, running(netip.AddrPort{}), &proxy.ForwarderOptions{ListenAddress: address})
		for i := range n {
			h.Forward(firstFree+i, db)
		}
		require.Zero(b, h.Stats().Unopened)
		require.Equal(b, n, h.Stats().Forwards)
		return h
	}
	few := fill(netip.MustParseAddr("127.1.0.1"), 10)
	many := fill(netip.MustParseAddr("127.1.0.2"), 16_384)
	change := func(h *harbour) time.Duration {
		began := time.Now()
		h.Forward(firstFree-1, db)
		h.Unforward(firstFree - 1)
		return time.Since(began)
	}
	var among10, among16384 time.Duration
	for b.Loop() {
		among10 += change(few)
		among16384 += change(many)
	}
	b.ReportMetric(float64(among16384)/float64(among10), "16384-ports/10-ports")
	b.ReportMetric(float64(among10.Microseconds())/float64(b.N), "µs/change-among-10")
	b.ReportMetric(0, "ns/op")
}

// Clients that connect and do nothing get what the limits allow and no more, keep nobody else out, and are gone when their
// time is over.
func TestForwarderHalfOpen(t *testing.T) {
	const flood, perWebspace = 20_000, 400
	address := echo(t)
	activator := &fakeActivator{
		ready: func(target proxy.Target) (netip.AddrPort, bool) { return address, target.Webspace == "good" },
		activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
			<-ctx.Done()
			return netip.AddrPort{}, ctx.Err()
		},
	}
	h := forwarder(t, activator, &proxy.ForwarderOptions{
		HoldTimeout: 3 * time.Second, Limits: proxy.HoldLimits{Webspace: perWebspace, Source: 8, Total: 2000},
	})
	bad, good := h.open(t, db), h.open(t, proxy.Target{Webspace: "good", Port: 1})
	before := descriptors()
	var group sync.WaitGroup
	flooded := make(chan struct{}) // closed when the first ones are held
	var once sync.Once
	slots := make(chan struct{}, 2*perWebspace) // each has a descriptor on our side as well
	for i := range flood {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			conn, err := tryFrom(netip.AddrFrom4([4]byte{127, 4, byte(i / 250), byte(1 + i%250)}), bad)
			if err != nil {
				return // refused before the handshake was over
			}
			defer conn.Close()
			if h.Stats().Live == perWebspace {
				once.Do(func() { close(flooded) })
			}
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			_, err = io.Copy(io.Discard, conn)
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Error("it is still there")
			}
		})
		if i == 2*perWebspace {
			<-flooded
			began := time.Now()
			conn := dialPort(t, good)
			echoes(t, conn, "x")
			t.Logf("served in %v", time.Since(began))
			require.LessOrEqual(t, h.Stats().Live, perWebspace+1)
			require.LessOrEqual(t, descriptors()-before, 2*perWebspace+perWebspace+16)
			require.NoError(t, conn.Close())
		}
	}
	group.Wait()
	eventually(t, "all gone", func() bool { return h.Stats().Live == 0 })
	stats := h.Stats()
	require.Positive(t, stats.RefusedWebspace+stats.RefusedSource)
	require.EqualValues(t, flood+1, stats.Accepted)
}
