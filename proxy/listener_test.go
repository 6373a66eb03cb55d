package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// limit makes h serve connections within limits.
func (h *house) limit(t *testing.T, limits *proxy.ConnLimits) *proxy.Conns {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	conns := proxy.NewConns(limits)
	h.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- h.Serve(conns.Listen(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, h.Shutdown(ctx))
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		eventually(t, "all is given back", func() bool { s := conns.Stats(); return s.Open == 0 && s.Waiting == 0 && s.Sources == 0 })
	})
	return conns
}

// from connects from an address of this host.
func (h *house) from(t testing.TB, address string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", h.address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return conn
}

// visit asks for alice's page and reads the answer.
func visit(conn net.Conn) (status int, err error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n"); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// refused tells whether a connection from an address is closed at once.
func (h *house) refused(address string) error {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", h.address)
	if err != nil { // so soon that it looks as if nobody listened
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return gone(conn)
}

func gone(conn net.Conn) error {
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		return fmt.Errorf("read %d bytes", n)
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return err
	}
	return nil
}

// A client that has too many connections loses those that it does not use, and gets no more once it uses all of them.
func TestConnsOfOneSource(t *testing.T) {
	boot := make(chan struct{})
	h := serve(t, alice, booting(instance(t, func(http.ResponseWriter, *http.Request) {}), boot), nil)
	conns := h.limit(t, &proxy.ConnLimits{Total: 100, Source: 3})

	idle := h.from(t, "127.0.1.1")
	waits := func(n int) {
		t.Helper()
		eventually(t, "connections wait", func() bool { return conns.Stats().Waiting == n })
	}
	waits(1)
	var used []net.Conn
	for i := range 3 {
		conn := h.from(t, "127.0.1.1")
		used = append(used, conn)
		_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		require.NoError(t, err)
		eventually(t, "held", func() bool { return h.Stats().Holds.Held == i+1 })
	}
	require.NoError(t, gone(idle))
	require.NoError(t, h.refused("127.0.1.1"))
	stats := conns.Stats()
	require.Equal(t, proxy.ConnStats{Open: 3, Sources: 1, Evicted: 1, RefusedSource: 1}, stats)

	other := h.from(t, "127.0.1.2")
	waits(1)
	close(boot)
	for _, conn := range used {
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode)
	}
	status, err := visit(other)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	waits(4)
	again := h.from(t, "127.0.1.1")
	status, err = visit(again)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	stats = conns.Stats()
	require.Equal(t, 4, stats.Open)
	require.EqualValues(t, 2, stats.Evicted)
}

func TestConnsInTotal(t *testing.T) {
	boot := make(chan struct{})
	defer close(boot)
	h := serve(t, alice, booting(closedPort(t), boot), &proxy.GatewayOptions{HoldTimeout: time.Second})
	conns := h.limit(t, &proxy.ConnLimits{Total: 2, Source: 1, Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.2.0/24")}})
	for i := range 2 {
		_, err := io.WriteString(h.from(t, "127.0.2.1"), "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		require.NoError(t, err)
		eventually(t, "held", func() bool { return h.Stats().Holds.Held == i+1 })
	}
	require.NoError(t, h.refused("127.0.3.1"))
	require.Equal(t, proxy.ConnStats{Open: 2, RefusedTotal: 1}, conns.Stats())
}

// What looks for the TCP connection below still finds it: a client that leaves while its body is held is noticed.
func TestConnsHangUp(t *testing.T) {
	boot := make(chan struct{})
	defer close(boot)
	h := serve(t, alice, booting(closedPort(t), boot), nil)
	h.limit(t, nil)
	conn := h.from(t, "127.0.0.1")
	_, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 10\r\n\r\nabc")
	require.NoError(t, err)
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	conn.Close()
	eventually(t, "noticed", func() bool { return h.Stats().ClientsGone == 1 })
}

func TestConnsAreTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	conns := proxy.NewConns(nil)
	l = conns.Listen(l)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	conn, err := l.Accept()
	require.NoError(t, err)
	require.Implements(t, (*interface{ CloseWrite() error })(nil), conn)
	require.Implements(t, (*io.ReaderFrom)(nil), conn)
	require.Implements(t, (*io.WriterTo)(nil), conn)
	require.IsType(t, (*net.TCPConn)(nil), conn.(interface{ NetConn() net.Conn }).NetConn())
	require.Equal(t, 1, conns.Stats().Waiting)
	proxy.ConnState(conn, http.StateActive)
	require.Equal(t, proxy.ConnStats{Open: 1, Sources: 1}, conns.Stats())
	require.NoError(t, conn.Close())
	require.Error(t, conn.Close())
	proxy.ConnState(conn, http.StateIdle)
	require.Equal(t, proxy.ConnStats{}, conns.Stats())
}

// Thousands of connections with half a request take no more descriptors than they may, keep nobody else out, and end.
// FLOOD says how many, if not 2000.
func TestConnsHalfOpen(t *testing.T) {
	const total, sources = 500, 40
	flood := 2000
	if n, err := strconv.Atoi(os.Getenv("FLOOD")); err == nil {
		flood = n
	}
	if proxy.MaxConns()*16/3 < flood+2*total && proxy.MaxConns() < 10_000 {
		t.Skipf("%d connections take more file descriptors than this process may have", flood)
	}
	h := serve(t, alice, running(instance(t, func(http.ResponseWriter, *http.Request) {})), nil)
	conns := h.limit(t, &proxy.ConnLimits{Total: total, Source: 25})
	status, err := visit(h.from(t, "127.0.8.1"))
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	base := descriptors()
	for i := range flood {
		conn := h.from(t, fmt.Sprintf("127.0.9.%d", 1+i%sources))
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: ali")
		if i%100 == 0 {
			require.LessOrEqual(t, conns.Stats().Open, total)
		}
	}
	// A descriptor that is closed is gone as soon as nobody reads from it any more.
	eventually(t, "few descriptors", func() bool { return descriptors()-base-flood <= total })
	stats := conns.Stats()
	require.LessOrEqual(t, stats.Open, total)
	require.NotZero(t, stats.Evicted)
	good := h.from(t, "127.0.8.1")
	require.NoError(t, good.SetDeadline(time.Now().Add(10*time.Second)))
	status, err = visit(good)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Eventually(t, func() bool { return conns.Stats().Open <= 2 }, 30*time.Second, 20*time.Millisecond, "%+v", conns.Stats())
}

// One client with many slow requests keeps nobody else out of a webspace.
func TestGatewayOneSource(t *testing.T) {
	address := instance(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	h := serve(t, alice, running(address), &proxy.GatewayOptions{MaxActivePerWebspace: 20})
	for range 20 {
		_, err := io.WriteString(h.from(t, "127.0.3.1"), "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 100000\r\n\r\nx")
		require.NoError(t, err)
	}
	eventually(t, "half of them are refused", func() bool { s := h.Stats(); return s.Active == 10 && s.RefusedSource == 10 })
	status, err := visit(h.from(t, "127.0.4.1"))
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
}

// An instance that accepts everything and answers nothing takes nothing from the others.
func TestGatewayActivePerWebspace(t *testing.T) {
	release := make(chan struct{})
	slow := instance(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	quick := instance(t, func(http.ResponseWriter, *http.Request) {})
	h := serve(t, hosts{"alice.test": "alice", "bob.test": "bob"}, &fakeActivator{
		ready: func(target proxy.Target) (netip.AddrPort, bool) {
			if target.Webspace == "alice" {
				return slow, true
			}
			return quick, true
		},
	}, &proxy.GatewayOptions{MaxActive: 3, MaxActivePerWebspace: 2, MaxActivePerSource: 3})
	done := make(chan error, 3)
	ask := func(host string) {
		response, err := h.client.Get("http://" + host + "/")
		if err == nil {
			response.Body.Close()
		}
		done <- err
	}
	for range 2 {
		go ask("alice.test")
	}
	eventually(t, "active", func() bool { return h.Stats().Active == 2 })
	response, body := h.get(t, "http://alice.test/")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Equal(t, "5", response.Header.Get("Retry-After"))
	require.Contains(t, body, "Too many requests to this webspace")
	response, _ = h.get(t, "http://bob.test/")
	require.Equal(t, http.StatusOK, response.StatusCode)
	stats := h.Stats()
	require.EqualValues(t, 1, stats.RefusedWebspace)
	require.Zero(t, stats.RefusedTotal)
	close(release)
	for range 2 {
		require.NoError(t, <-done)
	}
	eventually(t, "all given back", func() bool { return h.Stats().Active == 0 })
	response, _ = h.get(t, "http://alice.test/")
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestGatewayActiveInTotal(t *testing.T) {
	h := serve(t, alice, running(instance(t, echoUpgrade)), &proxy.GatewayOptions{MaxActive: 1})
	conn := h.dial(t)
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	require.NoError(t, err)
	eventually(t, "upgraded", func() bool { return h.Stats().Upgraded == 1 })
	response, body := h.get(t, "http://alice.test/")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Contains(t, body, "Too many requests are under way")
	require.EqualValues(t, 1, h.Stats().RefusedTotal)
	require.Equal(t, 1, h.Stats().Active)
}

// Those that were held are not refused when they all come at once, but served one after the other.
func TestGatewayActiveAfterHold(t *testing.T) {
	boot := make(chan struct{})
	var now, most atomic.Int64
	h := serve(t, alice, booting(instance(t, func(http.ResponseWriter, *http.Request) {
		most.Store(max(most.Load(), now.Add(1))) // may miss one, but never be too many
		now.Add(-1)
	}), boot), &proxy.GatewayOptions{MaxActivePerWebspace: 2, MaxActivePerSource: 2})
	statuses := make(chan int)
	for range 20 {
		go func() {
			response, err := h.client.Get("http://alice.test/")
			if err != nil {
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		}()
	}
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 20 })
	close(boot)
	for range 20 {
		require.Equal(t, http.StatusOK, <-statuses)
	}
	require.LessOrEqual(t, most.Load(), int64(2))
}
