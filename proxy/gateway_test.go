package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
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

// hosts is a router. Everything it knows is at port 80.
type hosts map[string]string // host name: webspace

func (h hosts) Route(host string) (proxy.Target, error) {
	if webspace, ok := h[strings.ToLower(host)]; ok {
		return proxy.Target{Webspace: webspace, Port: 80}, nil
	}
	return proxy.Target{}, fmt.Errorf("host %q: %w", host, errdefs.ErrNotFound)
}

var alice = hosts{"alice.test": "alice"}

// fakeActivator does what its functions say, and counts the endpoints that it has given out.
type fakeActivator struct {
	ready    func(proxy.Target) (netip.AddrPort, bool) // nil: never
	activate func(context.Context, proxy.Target) (netip.AddrPort, error)

	activations, out, doubled atomic.Int64

	mu     sync.Mutex
	blamed []error // of releases with an error
}

func (a *fakeActivator) Ready(t proxy.Target) (proxy.Endpoint, bool) {
	if a.ready == nil {
		return proxy.Endpoint{}, false
	}
	address, ok := a.ready(t)
	if !ok {
		return proxy.Endpoint{}, false
	}
	return a.endpoint(address), true
}

func (a *fakeActivator) Activate(ctx context.Context, t proxy.Target) (proxy.Endpoint, error) {
	a.activations.Add(1)
	address, err := a.activate(ctx, t)
	if err != nil {
		return proxy.Endpoint{}, err
	}
	return a.endpoint(address), nil
}

func (a *fakeActivator) endpoint(address netip.AddrPort) proxy.Endpoint {
	a.out.Add(1)
	var released atomic.Bool
	return proxy.Endpoint{Address: address, Release: func(err error) {
		if released.Swap(true) {
			a.doubled.Add(1)
			return
		}
		if err != nil {
			a.mu.Lock()
			a.blamed = append(a.blamed, err)
			a.mu.Unlock()
		}
		a.out.Add(-1)
	}}
}

// running is an activator of which all targets are at one address.
func running(address netip.AddrPort) *fakeActivator {
	return &fakeActivator{ready: func(proxy.Target) (netip.AddrPort, bool) { return address, true }}
}

// booting is an activator of which no target is ready before boot is closed.
func booting(address netip.AddrPort, boot <-chan struct{}) *fakeActivator {
	return &fakeActivator{activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
		select {
		case <-boot:
			return address, nil
		case <-ctx.Done():
			return netip.AddrPort{}, ctx.Err()
		}
	}}
}

func instance(t testing.TB, handler http.HandlerFunc) netip.AddrPort {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return netip.MustParseAddrPort(server.Listener.Addr().String())
}

// closedPort returns an address that refuses connections.
func closedPort(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// house is a gateway that serves.
type house struct {
	*proxy.Gateway
	address string
	client  *http.Client // to which every host name is the gateway's
}

func serve(t testing.TB, router proxy.Router, activator *fakeActivator, opts *proxy.GatewayOptions) *house {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h := &house{Gateway: proxy.NewGateway(router, activator, opts), address: l.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", h.address)
	}, MaxIdleConnsPerHost: 100}
	h.client = &http.Client{Transport: transport, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, h.Shutdown(ctx))
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		require.Zero(t, activator.out.Load(), "endpoints not released")
		require.Zero(t, activator.doubled.Load(), "endpoints released twice")
		require.Zero(t, h.Stats().Holds.Held)
		require.Zero(t, h.Stats().Live)
		require.Zero(t, h.Stats().Upgraded)
	})
	return h
}

// raw sends bytes on a connection of its own and returns the answer to method.
func (h *house) raw(t testing.TB, method, request string) (*http.Response, string) {
	t.Helper()
	conn := h.dial(t)
	_, err := io.WriteString(conn, request)
	require.NoError(t, err)
	return answer(t, bufio.NewReader(conn), method)
}

func (h *house) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", h.address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn.(*net.TCPConn)
}

func answer(t testing.TB, r *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	response, err := http.ReadResponse(r, &http.Request{Method: method})
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(body)
}

func (h *house) get(t testing.TB, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	return h.do(t, request)
}

func (h *house) do(t testing.TB, request *http.Request) (*http.Response, string) {
	t.Helper()
	response, err := h.client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(body)
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, 5*time.Millisecond, what)
}

func TestGatewayPassesTheRequestOn(t *testing.T) {
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Answer", "yes")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %q %s", r.Method, r.RequestURI, r.Host, r.Header["X-Mine"], body)
	})), nil)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
		request, err := http.NewRequest(method, "http://Alice.TEST:8081/a%2Fb//c;d?x=1;y=%zz&q", strings.NewReader("body"))
		require.NoError(t, err)
		request.Header["X-Mine"] = []string{"1", "2"}
		response, body := h.do(t, request)
		require.Equal(t, http.StatusTeapot, response.StatusCode)
		require.Equal(t, "yes", response.Header.Get("X-Answer"))
		require.Equal(t, method+` /a%2Fb//c;d?x=1;y=%zz&q Alice.TEST:8081 ["1" "2"] body`, body)
	}
	response, body := h.raw(t, "HEAD", "HEAD / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
	require.Equal(t, http.StatusTeapot, response.StatusCode)
	require.Empty(t, body)
	_, body = h.raw(t, "GET", "GET http://alice.test/abs?q HTTP/1.1\r\nHost: other.test\r\n\r\n")
	require.Equal(t, `GET /abs?q alice.test [] `, body)
}

func TestGatewayHosts(t *testing.T) {
	h := serve(t, hosts{"alice.test": "alice", "alice.test.": "alice", "a_b.test": "alice", "2001:db8::1": "alice"},
		running(instance(t, func(http.ResponseWriter, *http.Request) {})), nil)
	for host, status := range map[string]int{
		"alice.test": 200, "ALICE.test": 200, "alice.test.": 200, "alice.test:80": 200, "alice.test:": 200, "a_b.test": 200,
		"[2001:db8::1]": 200, "[2001:db8::1]:8080": 200,
		"bob.test": 404, "198.18.0.1": 404, "[::1]": 404, "alice.test.evil": 404, "x" + strings.Repeat("y", 250): 404,
		"": 400, ":80": 400, "alice.test:x": 400, "alice.test:123456": 400, "::1": 400, "[::1": 400, "[::1]x": 400,
		"[198.18.0.1]": 400, "[fe80::1%25eth0]": 400, "[]": 400, "user@alice.test": 400, "alice.test/x": 400, "alice%2etest": 400,
		"älice.test": 400, "alice test": 400, "alice.test\x00": 400, "<script>": 400, "alice.test:80:80": 400,
		strings.Repeat("y", 255): 400, "*": 400, "${jndi:x}": 400,
	} {
		response, body := h.raw(t, "GET", "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		require.Equal(t, status, response.StatusCode, "%q: %s", host, body)
	}
	for name, request := range map[string]string{
		"no host":       "GET / HTTP/1.1\r\n\r\n",
		"none, HTTP/1":  "GET / HTTP/1.0\r\n\r\n",
		"two hosts":     "GET / HTTP/1.1\r\nHost: alice.test\r\nHost: alice.test\r\n\r\n",
		"opaque target": "GET foo:bar HTTP/1.1\r\nHost: alice.test\r\n\r\n",
		"target *":      "GET * HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	} {
		response, _ := h.raw(t, "GET", request)
		require.Equal(t, 400, response.StatusCode, name)
	}
	for _, method := range []string{"CONNECT", "TRACE"} {
		response, _ := h.raw(t, method, method+" alice.test:80 HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		if method == "TRACE" {
			response, _ = h.raw(t, method, "TRACE / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		}
		require.Equal(t, 405, response.StatusCode)
		require.NotEmpty(t, response.Header.Get("Allow"))
	}
}

func TestGatewayUnknownHostsLookAlike(t *testing.T) {
	gone := &fakeActivator{activate: func(context.Context, proxy.Target) (netip.AddrPort, error) {
		return netip.AddrPort{}, &proxy.Failure{Reason: "webspace alice was deleted", Err: errdefs.ErrNotFound}
	}}
	h := serve(t, alice, gone, nil)
	for _, accept := range []string{"text/html", "*/*"} {
		var first string
		for _, host := range []string{"bob.test", "carol.example", "1.2.3.4", "alice.test"} {
			response, body := h.get(t, "http://"+host+"/secret", "Accept", accept)
			require.Equal(t, 404, response.StatusCode)
			response.Header.Del("Date")
			all := fmt.Sprint(response.Header) + body
			if first == "" {
				first = all
			}
			require.Equal(t, first, all)
			require.NotContains(t, all, host)
		}
	}
}

func TestGatewayFailures(t *testing.T) {
	internal := errors.New("dial 10.0.0.1: secret detail")
	wrap := func(class error) error { return fmt.Errorf("%w: %w", internal, class) }
	for _, c := range []struct {
		name   string
		err    error
		status int
		reason string
		retry  string
	}{
		{"nothing listens", wrap(errdefs.ErrFailedPrecondition), 502, "The webspace runs, but nothing listens on port 80.", ""},
		{"in its words", &proxy.Failure{Reason: "Nothing listens on <80>.", Err: wrap(errdefs.ErrFailedPrecondition)}, 502, "Nothing listens on <80>.", ""},
		{"boot failed", wrap(errdefs.ErrUnavailable), 503, "The webspace could not be started.", ""},
		{"boot failed for now", &proxy.Failure{Reason: "No.", RetryAfter: 1500 * time.Millisecond, Err: wrap(errdefs.ErrUnavailable)}, 503, "No.", "2"},
		{"too many boots", wrap(errdefs.ErrResourceExhausted), 503, "Too much is going on at the moment.", "5"},
		{"too many, later", &proxy.Failure{Reason: "Later.", RetryAfter: time.Minute, Err: wrap(errdefs.ErrResourceExhausted)}, 503, "Later.", "60"},
		{"its own deadline", fmt.Errorf("boot: %w", context.DeadlineExceeded), 504, "The webspace did not answer in time.", ""},
		{"anything else", internal, 502, "The webspace did not answer as a web server should.", ""},
		{"two\r\nlines", &proxy.Failure{Reason: "One\r\nX-Evil: 1", Err: internal}, 502, "One X-Evil: 1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var logged syncBuffer
			h := serve(t, alice, &fakeActivator{activate: func(context.Context, proxy.Target) (netip.AddrPort, error) {
				return netip.AddrPort{}, c.err
			}}, &proxy.GatewayOptions{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			response, body := h.get(t, "http://alice.test/")
			require.Equal(t, c.status, response.StatusCode)
			require.Equal(t, c.reason+"\n", body)
			require.Equal(t, c.retry, response.Header.Get("Retry-After"))
			require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
			require.Equal(t, "text/plain; charset=utf-8", response.Header.Get("Content-Type"))
			require.Equal(t, uint64(1), h.Stats().Failures[c.status])

			response, body = h.get(t, "http://alice.test/", "Accept", "text/html,*/*;q=0.8")
			require.Equal(t, c.status, response.StatusCode)
			require.Contains(t, response.Header.Get("Content-Type"), "text/html")
			require.NotContains(t, body, "secret detail")
			require.NotContains(t, body, "<80>")

			response, body = h.raw(t, "HEAD", "HEAD / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
			require.Equal(t, c.status, response.StatusCode)
			require.Empty(t, body)

			var failure *proxy.Failure
			require.Equal(t, !errors.As(c.err, &failure), strings.Contains(logged.String(), "level=WARN"), logged.String())
			require.NotContains(t, logged.String(), "level=INFO")
		})
	}
}

func TestGatewayAccept(t *testing.T) {
	h := serve(t, hosts{}, &fakeActivator{}, nil)
	for accept, html := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "text/plain": false, "text/html;q=0": false, "text/html;q=x": false,
		"text/plain, text/html;q=0.5": false, "text/html": true, "TEXT/HTML ; Q=0.9, */*;q=0.1": true, "application/xhtml+xml": true,
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": true,
	} {
		_, body := h.get(t, "http://alice.test/", "Accept", accept)
		require.Equal(t, html, strings.HasPrefix(body, "<!doctype html>"), accept)
	}
}

func TestGatewayBadInstances(t *testing.T) {
	for name, c := range map[string]struct {
		says   string
		status int
	}{
		"nothing":            {"", 502},
		"not HTTP":           {"SSH-2.0-OpenSSH_9.2\r\n", 502},
		"endless headers":    {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 300<<10) + "\r\n\r\n", 502},
		"unasked upgrade":    {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502},
		"malformed chunking": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: nonsense\r\n\r\n", 502},
		"two lengths":        {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502},
		"header splitting":   {"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: x\r\nContent-Length: 0\r\n\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, func(conn net.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = io.WriteString(conn, c.says)
			})
			h := serve(t, alice, running(l), nil)
			response, _ := h.get(t, "http://alice.test/")
			if c.status != 0 {
				require.Equal(t, c.status, response.StatusCode)
			}
			require.Empty(t, response.Header["Set-Cookie"])
		})
	}
}

func TestGatewayShutdown(t *testing.T) {
	t.Run("serves what is held", func(t *testing.T) {
		boot := make(chan struct{})
		h := serve(t, alice, booting(instance(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up") }), boot), nil)
		body := make(chan string)
		go func() { _, b := h.get(t, "http://alice.test/"); body <- b }()
		eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
		done := make(chan error)
		go func() { done <- h.Shutdown(t.Context()) }()
		eventually(t, "closed", func() bool {
			conn, err := net.Dial("tcp", h.address)
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		close(boot)
		require.Equal(t, "up", <-body)
		require.NoError(t, <-done)
		require.NoError(t, h.Shutdown(t.Context()), "again")
	})
	t.Run("tells what is held for too long", func(t *testing.T) {
		h := serve(t, alice, booting(netip.AddrPort{}, nil), nil)
		type result struct {
			response *http.Response
			body     string
		}
		results := make(chan result)
		go func() { r, b := h.get(t, "http://alice.test/"); results <- result{r, b} }()
		eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, h.Shutdown(ctx), context.Canceled)
		r := <-results
		require.Equal(t, 503, r.response.StatusCode)
		require.Equal(t, "1", r.response.Header.Get("Retry-After"))
		require.Contains(t, r.body, "restarting")
		require.NoError(t, h.Shutdown(t.Context()))
	})
	t.Run("cuts streams and upgraded connections off", func(t *testing.T) {
		h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				echoUpgrade(w, r)
				return
			}
			w.WriteHeader(200)
			for r.Context().Err() == nil { // faster than anyone reads
				_, _ = w.Write(make([]byte, 32<<10))
			}
		})), nil)
		stream := h.dial(t)
		fmt.Fprint(stream, "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		socket, reader := h.upgrade(t, "echo", "")
		eventually(t, "both", func() bool { s := h.Stats(); return s.Live == 2 && s.Upgraded == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, h.Shutdown(ctx), context.DeadlineExceeded)
		require.Zero(t, h.Stats().Live)
		_, err := reader.ReadByte()
		require.ErrorIs(t, err, io.EOF)
		_, err = io.Copy(io.Discard, stream)
		_ = err // cut off: an end or a reset
		_ = socket
	})
	t.Run("as a handler", func(t *testing.T) {
		g := proxy.NewGateway(alice, running(netip.AddrPort{}), nil)
		require.NoError(t, g.Shutdown(t.Context()))
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("GET", "http://alice.test/", nil))
		require.Equal(t, 503, w.Code)
	})
}

// listen serves connections with a function each; they are closed after it.
func listen(t testing.TB, handle func(net.Conn)) netip.AddrPort {
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
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				handle(conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); group.Wait() })
	return netip.MustParseAddrPort(l.Addr().String())
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *syncBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}
