package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

func TestForwarderLimits(t *testing.T) {
	h := forwarder(t, running(echo(t)), &proxy.ForwarderOptions{Limits: proxy.HoldLimits{Webspace: 3, Source: 2, Total: 4}})
	a, b := h.open(t, proxy.Target{Webspace: "a", Port: 1}), h.open(t, proxy.Target{Webspace: "b", Port: 1})
	source := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, n}) }
	first := dialFrom(t, source(1), a)
	echoes(t, first, "x")
	echoes(t, dialFrom(t, source(1), a), "x")
	isRefused(t, source(1), b)
	echoes(t, dialFrom(t, source(2), a), "x")
	isRefused(t, source(3), a)
	echoes(t, dialFrom(t, source(3), b), "x")
	isRefused(t, source(4), b)
	stats := h.Stats()
	require.Equal(t, [3]uint64{1, 1, 1}, [3]uint64{stats.RefusedSource, stats.RefusedWebspace, stats.RefusedTotal})
	require.Equal(t, 4, stats.Live)
	require.NoError(t, first.Close())
	eventually(t, "there is room", func() bool { return h.Stats().Live == 3 })
	echoes(t, dialFrom(t, source(1), a), "x")

	h = forwarder(t, booting(netip.AddrPort{}, nil), &proxy.ForwarderOptions{Holds: proxy.NewHolds(&proxy.HoldLimits{Webspace: 1})})
	port := h.open(t, db)
	dialPort(t, port)
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	wasReset(t, dialPort(t, port))
	require.EqualValues(t, 1, h.Stats().Holds.RefusedWebspace)
}

// A port that somebody has is opened when it is free, and no other port waits for it.
func TestForwarderPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	h := forwarder(t, running(echo(t)), nil)
	require.True(t, errdefs.IsNotFound(h.Status(port)))
	h.Forward(port, db)
	require.ErrorIs(t, h.Status(port), syscall.EADDRINUSE)
	require.Equal(t, 1, h.Stats().Unopened)
	echoes(t, dialPort(t, h.open(t, db)), "x")
	require.NoError(t, taken.Close())
	eventually(t, "it is open", func() bool { return h.Status(port) == nil })
	echoes(t, dialPort(t, port), "x")
	require.Zero(t, h.Stats().Unopened)

	h.Unforward(port)
	h.Unforward(port)
	again, err := net.Listen("tcp", netip.AddrPortFrom(loopback, uint16(port)).String())
	require.NoError(t, err, "Unforward frees the port")
	defer again.Close()
	h.Forward(port, db)
	require.ErrorIs(t, h.Status(port), syscall.EADDRINUSE)
	h.Unforward(port)
	require.True(t, errdefs.IsNotFound(h.Status(port)))
}

// The kernel may have given the port to a connection of this host. It is said so, and opened afterwards.
func TestForwarderPortOfAConnection(t *testing.T) {
	port := int(closedPort(t).Port())
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback, uint16(port)))}
	conn, err := dialer.Dial("tcp", echo(t).String())
	require.NoError(t, err)
	defer conn.Close()
	h := forwarder(t, running(echo(t)), nil)
	h.Forward(port, db)
	require.ErrorIs(t, h.Status(port), syscall.EADDRINUSE)
	require.NoError(t, conn.(*net.TCPConn).SetLinger(0)) // else the kernel keeps the port for a minute more
	require.NoError(t, conn.Close())
	eventually(t, "it is open", func() bool { return h.Status(port) == nil })
	echoes(t, dialPort(t, port), "x")
}

// A port that another forwarder shares is taken, unless it is there to take over.
func TestForwarderReplaces(t *testing.T) {
	first := forwarder(t, running(echo(t)), &proxy.ForwarderOptions{Shared: true})
	port := first.open(t, db)
	stranger := forwarder(t, running(echo(t)), &proxy.ForwarderOptions{Shared: true})
	stranger.Forward(port, db)
	require.ErrorIs(t, stranger.Status(port), syscall.EADDRINUSE)
	stranger.Unforward(port)
	successor := forwarder(t, running(echo(t)), &proxy.ForwarderOptions{Shared: true, Replaces: true})
	successor.Forward(port, db)
	require.NoError(t, successor.Status(port))
	require.NoError(t, first.Yield())
	for range 50 {
		conn := dialPort(t, port)
		echoes(t, conn, "x")
		require.NoError(t, conn.Close())
	}
	require.EqualValues(t, 50, successor.Stats().Accepted)
	require.NoError(t, first.Shutdown(t.Context()))
	echoes(t, dialPort(t, port), "x")
}

func TestForwarderChanges(t *testing.T) {
	name := func(name string) netip.AddrPort {
		return server(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, name); _, _ = io.Copy(io.Discard, conn) })
	}
	addresses := map[int]netip.AddrPort{1: name("one"), 2: name("two")}
	boot := make(chan struct{})
	activator := &fakeActivator{
		ready: func(target proxy.Target) (netip.AddrPort, bool) { return addresses[target.Port], target.Port < 3 },
		activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
			<-ctx.Done()
			return netip.AddrPort{}, ctx.Err()
		},
	}
	defer close(boot)
	h := forwarder(t, activator, nil)
	greeting := func(conn net.Conn) string {
		text := make([]byte, 3)
		_, err := io.ReadFull(conn, text)
		require.NoError(t, err)
		return string(text)
	}
	port, other := h.open(t, proxy.Target{Port: 1}), h.open(t, proxy.Target{Port: 1})
	bystander, old := dialPort(t, other), dialPort(t, port)
	require.Equal(t, "one", greeting(bystander))
	require.Equal(t, "one", greeting(old))
	h.Forward(port, proxy.Target{Port: 2})
	wasReset(t, old)
	old = dialPort(t, port)
	require.Equal(t, "two", greeting(old))
	h.Forward(port, proxy.Target{Port: 2}) // nothing has changed
	_, err := io.WriteString(old, "x")
	require.NoError(t, err)
	h.Forward(port, proxy.Target{Port: 3})
	wasReset(t, old)
	held := dialPort(t, port)
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	h.Unforward(port)
	wasReset(t, held)
	eventually(t, "only the bystander is left", func() bool { return h.Stats().Live == 1 && activator.out.Load() == 1 })
	_, err = net.Dial("tcp", netip.AddrPortFrom(loopback, uint16(port)).String())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.NoError(t, bystander.SetReadDeadline(time.Now()))
	_, err = bystander.Read(make([]byte, 1))
	require.True(t, errors.Is(err, context.DeadlineExceeded) || err.(net.Error).Timeout(), "%v", err)
}

// One port comes and goes among two thousand, which do not notice.
func TestForwarderManyPorts(t *testing.T) {
	const forwards = 2000
	h := forwarder(t, running(echo(t)), nil)
	ports := make([]int, forwards)
	conns := make([]*net.TCPConn, 50)
	for i := range ports {
		ports[i] = h.open(t, db)
	}
	for i := range conns {
		conns[i] = dialPort(t, ports[i*40])
		echoes(t, conns[i], "x")
	}
	for range 100 {
		h.Unforward(h.open(t, db))
	}
	require.Equal(t, forwards, h.Stats().Forwards)
	for _, conn := range conns {
		echoes(t, conn, "y")
	}
	for _, port := range ports {
		require.NoError(t, h.Status(port))
	}
}
