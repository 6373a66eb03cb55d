package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// wire is an instance that looks at requests byte by byte, as a server does that is not written in Go. It closes each
// connection after one answer, and counts the requests; whatever comes after one on the same connection was smuggled. It
// serves one connection after the other: when the answer to a request is there, all before it have been looked at.
type wire struct {
	requests atomic.Int64
	wrong    syncBuffer // what it should never have seen
}

func (w *wire) handle(conn net.Conn) {
	var seen bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(conn, &seen))
	// The gateway has connections on which nothing comes: those that it opened for clients that had left by then.
	_ = conn.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := reader.Peek(1); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	request, err := http.ReadRequest(reader)
	if err != nil {
		return // the gateway has given up on it
	}
	if request.URL.Path != "/last" {
		w.requests.Add(1)
	}
	if host, _, _ := strings.Cut(request.Host, ":"); !strings.EqualFold(host, "alice.test") {
		fmt.Fprintf(&w.wrong, "host %q\n", request.Host)
	}
	for _, name := range []string{"Forwarded", "X-Real-Ip", "Proxy"} {
		if request.Header[name] != nil {
			fmt.Fprintf(&w.wrong, "%s: %q\n", name, request.Header[name])
		}
	}
	if values := request.Header["X-Forwarded-For"]; len(values) != 1 || values[0] != "127.0.0.1" {
		fmt.Fprintf(&w.wrong, "X-Forwarded-For: %q\n", values)
	}
	for name := range request.Header {
		if strings.Contains(name, "_") && strings.HasPrefix(strings.ToLower(strings.ReplaceAll(name, "_", "-")), "x-forwarded") {
			fmt.Fprintf(&w.wrong, "spoofed %s\n", name)
		}
	}
	if len(request.Header["Transfer-Encoding"])+len(request.Header["Content-Length"]) > 1 || len(request.TransferEncoding) > 1 {
		fmt.Fprintf(&w.wrong, "two lengths: %v %v\n", request.Header, request.TransferEncoding)
	}
	if _, err := io.Copy(io.Discard, request.Body); err != nil {
		return
	}
	for name := range request.Trailer {
		if strings.HasPrefix(name, "X-Forwarded") {
			fmt.Fprintf(&w.wrong, "spoofed trailer %s\n", name)
		}
	}
	if reader.Buffered() > 0 {
		fmt.Fprintf(&w.wrong, "more than one request: %q\n", seen.String())
	}
	fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nX-Instance: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

func (w *wire) listen(t testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.handle(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

// check sends bytes to the gateway and compares what comes back with what the instance has seen.
func (w *wire) check(t testing.TB, h *house, bytes []byte) {
	w.wrong.Reset()
	before := w.requests.Load()
	conn, err := net.Dial("tcp", h.address)
	require.NoError(t, err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = conn.Write(bytes)
	reader, answered := bufio.NewReader(conn), int64(0)
	for patience := true; ; {
		if patience { // for what will be answered without more bytes; then there are no more
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			_, err := reader.Peek(1)
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if patience = err == nil; !patience {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
		}
		response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodGet})
		if err != nil {
			break
		}
		if response.Header.Get("X-Instance") != "" {
			answered++
		}
		if response.StatusCode >= 200 {
			_, _ = io.Copy(io.Discard, response.Body)
		}
	}
	eventually(t, "over", func() bool { return h.Stats().Live == 0 })
	// A request with a body has a connection of its own, and comes after all before it.
	eventually(t, "last", func() bool {
		response, err := h.client.Post("http://alice.test/last", "text/plain", strings.NewReader("x"))
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == 200
	})
	// The client has half-closed, which counts as leaving: the last request may be served without an answer. Each needs
	// a request line, so there are never more than those.
	require.Empty(t, w.wrong.String(), "%q", bytes)
	seen := w.requests.Load() - before
	require.GreaterOrEqual(t, seen, answered)
	require.LessOrEqual(t, seen, int64(strings.Count(string(bytes), "HTTP/1.")), "%q", bytes)
}

func newWire(t testing.TB) (*wire, *house) {
	w := &wire{}
	router := hosts{"alice.test": "alice"}
	return w, serve(t, router, running(w.listen(t)), &proxy.GatewayOptions{IdleTimeout: time.Second, ResponseTimeout: time.Second,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}})
}

func TestGatewaySmuggling(t *testing.T) {
	w, h := newWire(t)
	for _, request := range smuggled {
		w.check(t, h, []byte(request))
		// The same with a request behind it, which must not become a part of anything else.
		w.check(t, h, []byte(request+"GET /second HTTP/1.1\r\nHost: alice.test\r\n\r\n"))
	}
	w.check(t, h, []byte("GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: close\r\n\r\n"))
}

func FuzzGateway(f *testing.F) {
	for _, request := range smuggled {
		f.Add([]byte(request))
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: alice.test\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	w, h := newWire(f)
	f.Fuzz(func(t *testing.T, request []byte) {
		w.check(t, h, request)
	})
}
