package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

func TestGatewayHoldsTheFirstRequest(t *testing.T) {
	boot := make(chan struct{})
	activator := booting(instance(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, body)
	}), boot)
	h := serve(t, alice, activator, nil)
	answers := make(chan string)
	go func() {
		request, _ := http.NewRequest("POST", "http://alice.test/first?x", strings.NewReader("body"))
		_, body := h.do(t, request)
		answers <- body
	}()
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	close(boot)
	require.Equal(t, "POST /first?x body", <-answers)
	require.Zero(t, h.Stats().Holds.Held)
}

// A thousand clients knock at once, through a proxy in front that says who they are.
func TestGatewayHerd(t *testing.T) {
	const clients = 1000
	boot := make(chan struct{})
	var served atomic.Int64
	activator := booting(instance(t, func(w http.ResponseWriter, r *http.Request) { served.Add(1) }), boot)
	h := serve(t, alice, activator, &proxy.GatewayOptions{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	var group sync.WaitGroup
	statuses := make([]int, clients)
	for i := range clients {
		group.Go(func() {
			response, _ := h.get(t, "http://alice.test/", "X-Forwarded-For", fmt.Sprintf("198.18.%d.1", i%250))
			statuses[i] = response.StatusCode
		})
	}
	eventually(t, "all held", func() bool { return h.Stats().Holds.Held == clients })
	require.Equal(t, 250, h.Stats().Holds.Sources)
	close(boot)
	group.Wait()
	for _, status := range statuses {
		require.Equal(t, 200, status)
	}
	require.Equal(t, int64(clients), served.Load())
}

func TestGatewayHoldLimits(t *testing.T) {
	holds := proxy.NewHolds(&proxy.HoldLimits{Webspace: 3, Source: 2, Total: 4})
	boot := make(chan struct{})
	h := serve(t, hosts{"a.test": "a", "b.test": "b", "c.test": "c"}, booting(instance(t, func(http.ResponseWriter, *http.Request) {}), boot),
		&proxy.GatewayOptions{Holds: holds, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	var group sync.WaitGroup
	hold := func(host, source string) {
		before := holds.Stats().Held
		group.Go(func() {
			response, _ := h.get(t, "http://"+host+"/", "X-Forwarded-For", source)
			require.Equal(t, 200, response.StatusCode)
		})
		eventually(t, "held", func() bool { return holds.Stats().Held == before+1 })
	}
	refused := func(host, source, reason string) {
		t.Helper()
		response, body := h.get(t, "http://"+host+"/", "X-Forwarded-For", source)
		require.Equal(t, 503, response.StatusCode)
		require.Equal(t, "5", response.Header.Get("Retry-After"))
		require.Contains(t, body, reason)
	}
	hold("a.test", "198.18.0.1")
	hold("a.test", "198.18.0.1, 127.0.0.9") // the right one is a proxy, too
	refused("b.test", "198.18.0.9, 198.18.0.1", "from your address")
	hold("a.test", "198.18.0.2")
	refused("a.test", "198.18.0.3", "for this webspace")
	hold("b.test", "198.18.0.3")
	refused("c.test", "198.18.0.4", "at the moment")
	require.Equal(t, h.Stats().Holds, holds.Stats())
	require.Equal(t, uint64(3), h.Stats().Failures[503])
	close(boot)
	group.Wait()
}

// What a held client sends stays in the kernel: the gateway reads no more than the buffer that had the headers in it.
func TestGatewayDoesNotReadHeldBodies(t *testing.T) {
	const size = 64 << 20
	boot := make(chan struct{})
	got := make(chan int64, 1)
	h := serve(t, alice, booting(instance(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got <- n
	}), boot), nil)
	conn := h.dial(t)
	require.NoError(t, conn.SetWriteBuffer(64<<10))
	var sent atomic.Int64
	done := make(chan error, 1)
	go func() {
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: %d\r\n\r\n", size)
		chunk := make([]byte, 16<<10)
		for sent.Load() < size {
			n, err := conn.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	last := int64(-1)
	require.Eventually(t, func() bool { // it has come to a stand
		n := sent.Load()
		defer func() { last = n }()
		return n == last
	}, 10*time.Second, 200*time.Millisecond)
	require.Less(t, last, int64(size/2), "the client was not held back")
	close(boot)
	require.NoError(t, <-done)
	require.Equal(t, int64(size), <-got)
}

func TestGatewayClientLeavesWhileHeld(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		leave   func(*net.TCPConn) error
	}{
		"GET":              {"GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n", (*net.TCPConn).Close},
		"POST, none sent":  {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 1000\r\n\r\n", (*net.TCPConn).Close},
		"POST, some sent":  {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 1000\r\n\r\nabc", (*net.TCPConn).Close},
		"POST, all sent":   {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 3\r\n\r\nabc", (*net.TCPConn).Close},
		"chunked":          {"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", (*net.TCPConn).Close},
		"with 100":         {"POST / HTTP/1.1\r\nHost: alice.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", (*net.TCPConn).Close},
		"a whole window":   {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000), (*net.TCPConn).Close},
		"half-closed POST": {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 1000\r\n\r\n", (*net.TCPConn).CloseWrite},
		"reset": {"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 1000\r\n\r\n", func(conn *net.TCPConn) error {
			_ = conn.SetLinger(0)
			return conn.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			activator := &fakeActivator{activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
				<-ctx.Done()
				close(ended)
				return netip.AddrPort{}, ctx.Err()
			}}
			h := serve(t, alice, activator, nil)
			conn := h.dial(t)
			_, err := io.WriteString(conn, c.request)
			require.NoError(t, err)
			eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
			require.NoError(t, c.leave(conn))
			began := time.Now()
			<-ended
			t.Logf("noticed after %v", time.Since(began))
			eventually(t, "freed", func() bool { s := h.Stats(); return s.Holds.Held == 0 && s.Live == 0 && s.ClientsGone == 1 })
			require.Empty(t, h.Stats().Failures)
		})
	}
}

func TestGatewayClientsThatStayAreNotGone(t *testing.T) {
	boot := make(chan struct{})
	h := serve(t, alice, booting(instance(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }), boot), nil)
	conn := h.dial(t)
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 3\r\n\r\nabc"+"GET /pipelined HTTP/1.1\r\nHost: alice.test\r\n\r\n")
	time.Sleep(150 * time.Millisecond) // several looks at the socket
	close(boot)
	reader := bufio.NewReader(conn)
	_, body := answer(t, reader, "POST")
	require.Equal(t, "abc", body)
	response, _ := answer(t, reader, "GET")
	require.Equal(t, 200, response.StatusCode)
}

func TestGatewayDialsUntilItCan(t *testing.T) {
	var requests atomic.Int64
	up := instance(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		_, _ = io.Copy(w, r.Body)
	})
	down := closedPort(t)
	for _, stale := range []bool{false, true} {
		t.Run(fmt.Sprintf("stale %v", stale), func(t *testing.T) {
			requests.Store(0)
			activator := &fakeActivator{}
			activator.activate = func(context.Context, proxy.Target) (netip.AddrPort, error) {
				if activator.activations.Load() < 4 {
					return down, nil
				}
				return up, nil
			}
			failures := 3
			if stale { // it thinks that it is ready, too
				failures = 4
				activator.ready = func(proxy.Target) (netip.AddrPort, bool) { return down, true }
			}
			h := serve(t, alice, activator, nil)
			request, err := http.NewRequest("POST", "http://alice.test/", strings.NewReader("the very same"))
			require.NoError(t, err)
			response, body := h.do(t, request)
			require.Equal(t, 200, response.StatusCode)
			require.Equal(t, "the very same", body)
			require.Equal(t, int64(1), requests.Load())
			require.Len(t, activator.blamed, failures)
			require.Equal(t, uint64(failures), h.Stats().DialErrors)
		})
	}
}

func TestGatewayHoldDeadline(t *testing.T) {
	for name, activator := range map[string]*fakeActivator{
		"never up":         booting(netip.AddrPort{}, nil),
		"never to be seen": {activate: func(context.Context, proxy.Target) (netip.AddrPort, error) { return closedPort(t), nil }},
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, alice, activator, &proxy.GatewayOptions{HoldTimeout: 300 * time.Millisecond})
			response, body := h.get(t, "http://alice.test/")
			require.Equal(t, 504, response.StatusCode)
			require.Equal(t, "5", response.Header.Get("Retry-After"))
			require.Equal(t, "The webspace has not come up within 300ms. It may do so in a moment.\n", body)
			require.Less(t, activator.activations.Load(), int64(20), "a hot loop")
		})
	}
	t.Run("its last word counts", func(t *testing.T) {
		h := serve(t, alice, &fakeActivator{activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
			<-ctx.Done()
			return netip.AddrPort{}, &proxy.Failure{Reason: "Nothing listens.", Err: errdefs.ErrFailedPrecondition}
		}}, &proxy.GatewayOptions{HoldTimeout: 50 * time.Millisecond})
		response, body := h.get(t, "http://alice.test/")
		require.Equal(t, 502, response.StatusCode)
		require.Equal(t, "Nothing listens.\n", body)
	})
}

// The instance dies with the request in its hands. Nobody knows what it has done by then, so it is not sent again.
func TestGatewayDoesNotRepeat(t *testing.T) {
	var requests atomic.Int64
	crashing := listen(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			requests.Add(1)
		}
	})
	activator := running(crashing)
	h := serve(t, alice, activator, nil)
	for i, method := range []string{"POST", "GET", "DELETE"} {
		request, err := http.NewRequest(method, "http://alice.test/", nil)
		require.NoError(t, err)
		response, _ := h.do(t, request)
		require.Equal(t, 502, response.StatusCode)
		require.Equal(t, int64(i+1), requests.Load())
	}
	require.Empty(t, activator.blamed, "it could be reached")
}

// An instance closes its idle connections when it likes, and stops and starts between any two requests.
func TestGatewayRestartsBetweenRequests(t *testing.T) {
	activator := &fakeActivator{}
	var current atomic.Pointer[netip.AddrPort]
	activator.ready = func(proxy.Target) (netip.AddrPort, bool) { return *current.Load(), true }
	activator.activate = func(context.Context, proxy.Target) (netip.AddrPort, error) { return *current.Load(), nil }
	h := serve(t, alice, activator, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := netip.MustParseAddrPort(l.Addr().String())
	current.Store(&address)
	for i := range 50 {
		if i > 0 {
			l, err = net.Listen("tcp", address.String())
			require.NoError(t, err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })}
		go func() { _ = server.Serve(l) }()
		for _, method := range []string{"GET", "POST", "GET", "PUT"} {
			request, err := http.NewRequest(method, "http://alice.test/", strings.NewReader("x"))
			require.NoError(t, err)
			if method == "GET" {
				request.Body, request.ContentLength = nil, 0
			}
			response, _ := h.do(t, request)
			require.Equal(t, 200, response.StatusCode)
		}
		require.NoError(t, server.Close())
	}
}

// Webspaces a and b have had the same address one after the other.
func TestGatewayPoolsByWebspace(t *testing.T) {
	var connections sync.Map
	address := instance(t, func(w http.ResponseWriter, r *http.Request) {
		webspace, _, _ := strings.Cut(r.Host, ".")
		if before, ok := connections.LoadOrStore(r.RemoteAddr, webspace); ok && before != webspace {
			t.Errorf("connection of %v used for %s", before, webspace)
		}
		fmt.Fprint(w, r.RemoteAddr)
	})
	h := serve(t, hosts{"a.test": "a", "b.test": "b"}, running(address), nil)
	_, first := h.get(t, "http://a.test/")
	_, second := h.get(t, "http://a.test/")
	require.Equal(t, first, second, "connections are kept")
	for range 20 {
		h.get(t, "http://b.test/")
		h.get(t, "http://a.test/")
	}
}
