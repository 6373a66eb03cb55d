package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/netsoc/webspaced/proxy"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// harbour is a forwarder of ports of loopback.
type harbour struct {
	*proxy.Forwarder
	activator *fakeActivator
}

// blamed returns why endpoints were given back.
func (h *harbour) blamed() []error {
	h.activator.mu.Lock()
	defer h.activator.mu.Unlock()
	return slices.Clone(h.activator.blamed)
}

func forwarder(t testing.TB, activator *fakeActivator, opts *proxy.ForwarderOptions) *harbour {
	var o proxy.ForwarderOptions
	if opts != nil {
		o = *opts
	}
	if !o.ListenAddress.IsValid() {
		o.ListenAddress = loopback
	}
	h := &harbour{proxy.NewForwarder(activator, &o), activator}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = h.Shutdown(ctx)
		require.NoError(t, h.Shutdown(context.Background()), "again")
		require.Zero(t, activator.out.Load(), "endpoints not released")
		require.Zero(t, activator.doubled.Load(), "endpoints released twice")
		stats := h.Stats()
		require.Zero(t, stats.Live)
		require.Zero(t, stats.Holds.Held)
		require.Zero(t, stats.Forwards)
	})
	return h
}

// open forwards some free port.
func (h *harbour) open(t testing.TB, target proxy.Target) int {
	t.Helper()
	for {
		port := int(closedPort(t).Port())
		h.Forward(port, target)
		if h.Status(port) == nil {
			return port
		}
		h.Unforward(port)
	}
}

func dialPort(t testing.TB, port int) *net.TCPConn {
	t.Helper()
	return dialFrom(t, netip.Addr{}, port)
}

func dialFrom(t testing.TB, source netip.Addr, port int) *net.TCPConn {
	t.Helper()
	conn, err := tryFrom(source, port)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn.(*net.TCPConn)
}

func tryFrom(source netip.Addr, port int) (net.Conn, error) {
	var dialer net.Dialer
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return dialer.Dial("tcp", netip.AddrPortFrom(loopback, uint16(port)).String())
}

// isRefused requires that a connection is reset at once, which may be before its client knows that it has one.
func isRefused(t testing.TB, source netip.Addr, port int) {
	t.Helper()
	conn, err := tryFrom(source, port)
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
		conn.Close()
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// server serves each connection with a function, and closes it then.
func server(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); group.Wait() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// echo sends back what it gets, then its end.
func echo(t testing.TB) netip.AddrPort {
	return server(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
}

func echoes(t testing.TB, conn *net.TCPConn, text string) {
	t.Helper()
	_, err := io.WriteString(conn, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// wasReset requires that a connection is cut off, which is not its end.
func wasReset(t testing.TB, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

var db = proxy.Target{Webspace: "alice", Port: 5432}

func TestForwarderHolds(t *testing.T) {
	boot := make(chan struct{})
	activator := booting(echo(t), boot)
	h := forwarder(t, activator, nil)
	port := h.open(t, db)
	silent, talking := dialPort(t, port), dialPort(t, port)
	_, err := io.WriteString(talking, "first ")
	require.NoError(t, err)
	require.NoError(t, talking.CloseWrite()) // it may still want an answer
	eventually(t, "both are held", func() bool { return h.Stats().Holds.Held == 2 })
	close(boot)
	all, err := io.ReadAll(talking)
	require.NoError(t, err)
	require.Equal(t, "first ", string(all))
	echoes(t, silent, "hello")
	require.Zero(t, h.Stats().Holds.Held)
	require.NoError(t, silent.CloseWrite())
	_, err = silent.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	eventually(t, "nothing is left", func() bool { return h.Stats().Live == 0 && activator.out.Load() == 0 })
}

// A thousand clients of 250 sources come at once, and all are served.
func TestForwarderHerd(t *testing.T) {
	const clients, sources = 1000, 250
	boot := make(chan struct{})
	activator := booting(echo(t), boot)
	h := forwarder(t, activator, nil)
	port := h.open(t, db)
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			conn := dialFrom(t, netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i%sources)}), port)
			defer conn.Close()
			echoes(t, conn, strconv.Itoa(i))
		})
	}
	eventually(t, "all are held", func() bool { return h.Stats().Holds.Held == clients })
	require.Equal(t, sources, h.Stats().Holds.Sources)
	close(boot)
	group.Wait()
	require.Zero(t, h.Stats().Failures)
}

// The end of what one side sends reaches the other, which goes on sending.
func TestForwarderHalfClose(t *testing.T) {
	const size = 8 << 20
	h := forwarder(t, running(server(t, func(conn *net.TCPConn) {
		n, _ := io.Copy(io.Discard, conn)
		fmt.Fprintf(conn, "%d", n)
	})), nil)
	conn := dialPort(t, h.open(t, db))
	_, err := io.CopyN(conn, zeros{}, size)
	require.NoError(t, err)
	require.NoError(t, conn.CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(size), string(answer))

	got := make(chan int64, 1)
	h = forwarder(t, running(server(t, func(conn *net.TCPConn) {
		_, _ = io.CopyN(conn, zeros{}, size)
		_ = conn.CloseWrite()
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})), nil)
	conn = dialPort(t, h.open(t, db))
	n, err := io.Copy(io.Discard, conn)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	_, err = io.CopyN(conn, zeros{}, size)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.EqualValues(t, size, <-got)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What was cut off does not look like an end on the other side.
// TestForwarderCountsBytes moves more than is counted at once, which arrives whole.
func TestForwarderCountsBytes(t *testing.T) {
	const size = 40<<20 + 7
	var got int64
	h := forwarder(t, running(server(t, func(conn *net.TCPConn) {
		got, _ = io.Copy(io.Discard, conn)
		_, _ = io.WriteString(conn, "thanks")
	})), nil)
	client := dialPort(t, h.open(t, proxy.Target{Webspace: "alice", Port: 1}))
	_, err := client.Write(make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, client.CloseWrite())
	answer, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "thanks", string(answer))
	require.EqualValues(t, size, got)
	eventually(t, "counted", func() bool { return h.Stats().Received == size && h.Stats().Sent == 6 })
}

func TestForwarderPassesResetsOn(t *testing.T) {
	for range 50 {
		ended := make(chan error, 1)
		h := forwarder(t, running(server(t, func(conn *net.TCPConn) {
			_, err := io.Copy(io.Discard, conn)
			ended <- err
		})), nil)
		conn := dialPort(t, h.open(t, db))
		_, err := io.WriteString(conn, "half a sen")
		require.NoError(t, err)
		require.NoError(t, conn.SetLinger(0))
		require.NoError(t, conn.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	}
	for range 50 {
		h := forwarder(t, running(server(t, func(conn *net.TCPConn) {
			_, _ = io.WriteString(conn, "half a sen")
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.SetLinger(0)
		})), nil)
		conn := dialPort(t, h.open(t, db))
		_, err := io.ReadFull(conn, make([]byte, 10))
		require.NoError(t, err)
		_, err = io.WriteString(conn, "x")
		require.NoError(t, err)
		wasReset(t, conn)
	}
}

// Whoever only looks whether a port is open boots nothing.
func TestForwarderScan(t *testing.T) {
	activator := &fakeActivator{}
	h := forwarder(t, activator, &proxy.ForwarderOptions{Limits: proxy.HoldLimits{Source: 100}})
	port := h.open(t, db)
	for i := range 100 {
		conn := dialPort(t, port)
		if i%2 == 0 {
			require.NoError(t, conn.SetLinger(0))
		}
		require.NoError(t, conn.Close())
	}
	// On a slow machine there are too many of one source at a time.
	eventually(t, "all are gone", func() bool { return h.Stats().ClientsGone+h.Stats().RefusedSource == 100 })
	require.Zero(t, activator.activations.Load())
}

func TestForwarderClientLeavesWhileHeld(t *testing.T) {
	for name, leave := range map[string]func(*net.TCPConn){
		"silent": func(conn *net.TCPConn) {},
		"reset": func(conn *net.TCPConn) {
			_, _ = io.WriteString(conn, "x")
			_ = conn.SetLinger(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := forwarder(t, booting(netip.AddrPort{}, nil), nil)
			conn := dialPort(t, h.open(t, db))
			eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
			leave(conn)
			require.NoError(t, conn.Close())
			eventually(t, "free", func() bool { return h.Stats().Holds.Held == 0 && h.Stats().ClientsGone == 1 })
		})
	}
}

func TestForwarderDialsAgain(t *testing.T) {
	address, down := echo(t), closedPort(t)
	tries := 0
	activator := &fakeActivator{
		ready: func(proxy.Target) (netip.AddrPort, bool) { return down, true },
		activate: func(context.Context, proxy.Target) (netip.AddrPort, error) {
			if tries++; tries <= 5 {
				return down, nil
			}
			return address, nil
		},
	}
	h := forwarder(t, activator, nil)
	echoes(t, dialPort(t, h.open(t, db)), "hello")
	require.EqualValues(t, 6, h.Stats().DialErrors)
	require.Len(t, h.blamed(), 6)
}

func TestForwarderGivesUp(t *testing.T) {
	for name, activate := range map[string]func(context.Context, proxy.Target) (netip.AddrPort, error){
		"failure": func(context.Context, proxy.Target) (netip.AddrPort, error) {
			return netip.AddrPort{}, &proxy.Failure{Reason: "No.", Err: errdefs.ErrUnavailable}
		},
		"too slow": func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
			<-ctx.Done()
			return netip.AddrPort{}, ctx.Err()
		},
		"never there": func(context.Context, proxy.Target) (netip.AddrPort, error) { return closedPort(t), nil },
	} {
		t.Run(name, func(t *testing.T) {
			h := forwarder(t, &fakeActivator{activate: activate}, &proxy.ForwarderOptions{HoldTimeout: 300 * time.Millisecond})
			conn := dialPort(t, h.open(t, db))
			wasReset(t, conn)
			eventually(t, "counted", func() bool { return h.Stats().Failures == 1 && h.Stats().Live == 0 })
		})
	}
}

func TestForwarderIdle(t *testing.T) {
	h := forwarder(t, running(echo(t)), &proxy.ForwarderOptions{IdleTimeout: 2 * time.Second})
	port := h.open(t, db)
	idle, busy := dialPort(t, port), dialPort(t, port)
	echoes(t, idle, "x")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, idle)
		ended <- err
	}()
	for began := time.Now(); time.Since(began) < 4*time.Second; time.Sleep(100 * time.Millisecond) {
		echoes(t, busy, "x")
	}
	require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	echoes(t, busy, "x")
}

func TestForwarderShutdown(t *testing.T) {
	h := forwarder(t, running(echo(t)), nil)
	port := h.open(t, db)
	conn := dialPort(t, port)
	echoes(t, conn, "x")
	done := make(chan error, 1)
	go func() { done <- h.Shutdown(t.Context()) }()
	eventually(t, "closed", func() bool { return h.Stats().Forwards == 0 })
	echoes(t, conn, "what is under way goes on")
	h.Forward(port, db)
	require.True(t, errdefs.IsNotFound(h.Status(port)))
	require.NoError(t, conn.Close())
	require.NoError(t, <-done)

	h = forwarder(t, running(echo(t)), nil)
	conn = dialPort(t, h.open(t, db))
	echoes(t, conn, "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, h.Shutdown(ctx), context.Canceled)
	wasReset(t, conn)
}

// A forwarded connection, held at first, is as good as any.
func TestForwarderConn(t *testing.T) {
	nettest.TestConn(t, func() (client, target net.Conn, stop func(), err error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		boot := make(chan struct{})
		close(boot)
		h := forwarder(t, booting(netip.MustParseAddrPort(l.Addr().String()), boot), nil)
		client, err = net.Dial("tcp", netip.AddrPortFrom(loopback, uint16(h.open(t, db))).String())
		if err != nil {
			return nil, nil, nil, err
		}
		target, err = l.Accept()
		return client, target, func() {
			client.Close()
			target.Close()
			l.Close()
			_ = h.Shutdown(t.Context())
		}, err
	})
}
