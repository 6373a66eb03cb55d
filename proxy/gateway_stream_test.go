package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// echoUpgrade switches protocols and sends back what comes, and "bye" when that ends.
func echoUpgrade(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
	_, _ = io.Copy(conn, buffered)
	fmt.Fprint(conn, "bye")
}

// upgrade opens an upgraded connection. early is sent with the request, without waiting for the answer.
func (h *house) upgrade(t testing.TB, protocol, early string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn := h.dial(t)
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %s\r\n\r\n%s", protocol, early)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	require.NoError(t, err)
	require.Equal(t, 101, response.StatusCode)
	require.Equal(t, protocol, response.Header.Get("Upgrade"))
	return conn, reader
}

func TestGatewayUpgrade(t *testing.T) {
	t.Run("echo, half-close, in use", func(t *testing.T) {
		activator := running(instance(t, echoUpgrade))
		h := serve(t, alice, activator, nil)
		conn, reader := h.upgrade(t, "websocket", "early ")
		for _, word := range []string{"early ", "one", "two", "three"} {
			if word != "early " {
				fmt.Fprint(conn, word)
			}
			got := make([]byte, len(word))
			_, err := io.ReadFull(reader, got)
			require.NoError(t, err)
			require.Equal(t, word, string(got))
			require.Equal(t, int64(1), activator.out.Load())
			require.Equal(t, 1, h.Stats().Upgraded)
		}
		require.NoError(t, conn.CloseWrite())
		rest, err := io.ReadAll(reader)
		require.NoError(t, err)
		require.Equal(t, "bye", string(rest))
		eventually(t, "over", func() bool { return activator.out.Load() == 0 && h.Stats().Live == 0 })
	})
	t.Run("the instance ends it", func(t *testing.T) {
		end := make(chan struct{})
		h := serve(t, alice, running(listen(t, func(conn net.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			<-end
		})), nil)
		conn, reader := h.upgrade(t, "x", "")
		close(end)
		_, err := reader.ReadByte()
		require.ErrorIs(t, err, io.EOF)
		conn.Close()
		eventually(t, "over", func() bool { return h.Stats().Live == 0 })
	})
	t.Run("the client vanishes", func(t *testing.T) {
		activator := running(instance(t, echoUpgrade))
		h := serve(t, alice, activator, nil)
		conn, _ := h.upgrade(t, "x", "")
		require.NoError(t, conn.SetLinger(0))
		conn.Close()
		eventually(t, "over", func() bool { return h.Stats().Live == 0 && activator.out.Load() == 0 })
	})
	t.Run("held", func(t *testing.T) {
		boot := make(chan struct{})
		h := serve(t, alice, booting(instance(t, echoUpgrade), boot), nil)
		go func() {
			eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
			close(boot)
		}()
		conn, reader := h.upgrade(t, "x", "")
		require.Zero(t, h.Stats().Holds.Held)
		require.NoError(t, conn.CloseWrite())
		rest, err := io.ReadAll(reader)
		require.NoError(t, err)
		require.Equal(t, "bye", string(rest))
	})
	t.Run("refused", func(t *testing.T) {
		h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%q %q %q", r.Header["Upgrade"], r.Header["Connection"], r.Header["Http2-Settings"])
		})), nil)
		for _, request := range []string{
			"GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade\r\nUpgrade: HTTP/2.0\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
			"GET / HTTP/1.1\r\nHost: alice.test\r\nUpgrade: websocket\r\n\r\n",
		} {
			_, body := h.raw(t, "GET", request)
			body = strings.ReplaceAll(body, `["close"]`, "[]")
			require.Equal(t, "[] [] []", body, request)
		}
	})
	t.Run("idle", func(t *testing.T) {
		h := serve(t, alice, running(instance(t, echoUpgrade)), &proxy.GatewayOptions{IdleTimeout: 1500 * time.Millisecond})
		conn, reader := h.upgrade(t, "x", "")
		for range 8 { // in all for longer than the timeout
			time.Sleep(250 * time.Millisecond)
			fmt.Fprint(conn, "p")
			_, err := reader.ReadByte()
			require.NoError(t, err)
		}
		_, err := reader.ReadByte()
		require.ErrorIs(t, err, io.EOF)
	})
}

func TestGatewayServerSentEvents(t *testing.T) {
	for _, contentType := range []string{"text/event-stream", "text/event-stream; charset=utf-8", "application/x-ndjson"} {
		next := make(chan struct{})
		h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			for range next {
				fmt.Fprint(w, "data: x\n\n")
				_ = http.NewResponseController(w).Flush()
			}
		})), nil)
		conn := h.dial(t)
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		next <- struct{}{}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		for i := range 3 {
			if i > 0 {
				next <- struct{}{}
			}
			event := make([]byte, len("data: x\n\n"))
			_, err := io.ReadFull(response.Body, event)
			require.NoError(t, err)
		}
		close(next)
		_, err = response.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
}

func TestGatewayBothWaysAtOnce(t *testing.T) {
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		buf := make([]byte, 1000)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	})), nil)
	// Larger than all buffers on the way: it only comes through if neither way waits for the other.
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for name, length := range map[string]int64{"known length": int64(len(body)), "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequest("POST", "http://alice.test/", io.NopCloser(bytes.NewReader(body)))
			require.NoError(t, err)
			request.ContentLength = length
			response, err := h.client.Do(request)
			require.NoError(t, err)
			defer response.Body.Close()
			hash := sha256.New()
			_, err = io.Copy(hash, response.Body)
			require.NoError(t, err)
			sum := sha256.Sum256(body)
			require.Equal(t, sum[:], hash.Sum(nil))
		})
	}
	t.Run("word by word", func(t *testing.T) {
		conn := h.dial(t)
		fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		for i, word := range []string{"one", "two", "six"} {
			if i > 0 {
				fmt.Fprintf(conn, "3\r\n%s\r\n", word)
			}
			got := make([]byte, 3)
			_, err := io.ReadFull(response.Body, got)
			require.NoError(t, err)
			require.Equal(t, word, string(got))
		}
		fmt.Fprint(conn, "0\r\n\r\n")
		_, err = io.ReadAll(response.Body)
		require.NoError(t, err)
		require.True(t, response.Close)
	})
}

// An instance may answer before the request is there. The rest of the request must reach nobody as another request.
func TestGatewayEarlyAnswer(t *testing.T) {
	var requests syncBuffer
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(&requests, r.Method, r.URL.Path)
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	})), nil)
	conn := h.dial(t)
	fmt.Fprint(conn, "POST /up HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 100\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, _ := answer(t, reader, "POST")
	require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
	require.True(t, response.Close)
	fmt.Fprint(conn, "GET /smuggled HTTP/1.1\r\nHost: alice.test\r\n\r\n")
	_, err := io.ReadAll(reader) // ends without the rest of the body, too
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection was left open")
	require.Equal(t, "POST /up\n", requests.String())
}

func TestGatewayTrailersAndInformation(t *testing.T) {
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, "body ", r.Trailer.Get("X-Request-Sum"), " ", r.Header.Get("Te"))
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	})), nil)
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	request, err := http.NewRequestWithContext(ctx, "POST", "http://alice.test/", io.NopCloser(strings.NewReader("x")))
	require.NoError(t, err)
	request.Trailer = http.Header{"X-Request-Sum": {"41"}}
	request.Header.Set("Te", "trailers")
	response, body := h.do(t, request)
	require.Equal(t, "body 41 trailers", body)
	require.Equal(t, []string{"103</style.css>; rel=preload"}, hints)
	require.Equal(t, http.Header{"X-Sum": {"42"}, "X-Late": {"43"}}, response.Trailer)

	first, _ := h.raw(t, "GET", "GET / HTTP/1.0\r\nHost: alice.test\r\n\r\n")
	require.Equal(t, 200, first.StatusCode, "HTTP/1.0 knows no 103")
}

func TestGatewayExpectContinue(t *testing.T) {
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s", body)
	})), nil)
	for path, status := range map[string]int{"/yes": 200, "/no": 403} {
		conn := h.dial(t)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: alice.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", path)
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, &http.Request{Method: "POST"})
		require.NoError(t, err)
		if status == 200 {
			require.Equal(t, 100, response.StatusCode)
			fmt.Fprint(conn, "body")
			response, body := answer(t, reader, "POST")
			require.Equal(t, 200, response.StatusCode)
			require.Equal(t, "body", body)
			continue
		}
		require.Equal(t, 403, response.StatusCode)
	}
}

func TestGatewayHTTP2(t *testing.T) {
	next := make(chan struct{})
	address := instance(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			for range next {
				fmt.Fprint(w, "x")
				_ = http.NewResponseController(w).Flush()
			}
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s", r.Proto, r.Host, r.Header.Get("X-Forwarded-Proto"), body)
		}
	})
	do := func(t *testing.T, client *http.Client, base string) {
		request, err := http.NewRequest("POST", base+"/", strings.NewReader("body"))
		require.NoError(t, err)
		request.Host = "alice.test"
		response, err := client.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		require.Equal(t, 2, response.ProtoMajor)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1 alice.test https body", string(body))
	}
	t.Run("as a handler", func(t *testing.T) {
		activator := running(address)
		g := proxy.NewGateway(alice, activator, nil)
		server := httptest.NewUnstartedServer(g)
		server.EnableHTTP2 = true
		server.StartTLS()
		defer server.Close()
		do(t, server.Client(), server.URL)
		request, err := http.NewRequest("GET", server.URL+"/events", nil)
		require.NoError(t, err)
		request.Host = "alice.test"
		go func() { next <- struct{}{} }()
		response, err := server.Client().Do(request)
		require.NoError(t, err)
		for i := range 3 {
			if i > 0 {
				next <- struct{}{}
			}
			_, err := io.ReadFull(response.Body, make([]byte, 1))
			require.NoError(t, err)
		}
		close(next)
		response.Body.Close()
		eventually(t, "released", func() bool { return activator.out.Load() == 0 })
		require.NoError(t, g.Shutdown(t.Context()))
	})
	t.Run("on a TLS listener", func(t *testing.T) {
		certified := httptest.NewUnstartedServer(nil)
		certified.StartTLS()
		defer certified.Close()
		config := certified.TLS.Clone()
		config.NextProtos = []string{"h2", "http/1.1"}
		l, err := tls.Listen("tcp", "127.0.0.1:0", config)
		require.NoError(t, err)
		boot := make(chan struct{})
		activator := booting(address, boot)
		g := proxy.NewGateway(alice, activator, nil)
		served := make(chan error)
		go func() { served <- g.Serve(l) }()
		client := certified.Client()
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
		// A held stream that is reset is noticed.
		ctx, cancel := context.WithCancel(t.Context())
		request, err := http.NewRequestWithContext(ctx, "POST", "https://"+l.Addr().String(), strings.NewReader("x"))
		require.NoError(t, err)
		request.Host = "alice.test"
		go func() {
			eventually(t, "held", func() bool { return g.Stats().Holds.Held == 1 })
			cancel()
		}()
		_, err = client.Do(request)
		require.ErrorIs(t, err, context.Canceled)
		eventually(t, "freed", func() bool { return g.Stats().Holds.Held == 0 })
		close(boot)
		do(t, client, "https://"+l.Addr().String())
		client.CloseIdleConnections()
		require.NoError(t, g.Shutdown(t.Context()))
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
}

func TestGatewayIdle(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	h := serve(t, alice, running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stalls":
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-release:
			}
		case "/floods":
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 64<<10))
			}
		case "/thinks":
			time.Sleep(600 * time.Millisecond)
			fmt.Fprint(w, "thought")
		case "/thinks too long":
			select {
			case <-r.Context().Done():
			case <-release:
			}
		default:
			_, _ = io.Copy(io.Discard, r.Body)
		}
	})), &proxy.GatewayOptions{IdleTimeout: 200 * time.Millisecond, ResponseTimeout: 2 * time.Second})

	t.Run("a request that stalls", func(t *testing.T) {
		response, _ := h.raw(t, "POST", "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 10\r\n\r\nabc")
		require.Equal(t, http.StatusRequestTimeout, response.StatusCode)
		require.True(t, response.Close)
	})
	t.Run("a response that stalls", func(t *testing.T) {
		conn := h.dial(t)
		fmt.Fprint(conn, "GET /stalls HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		_, err = io.ReadAll(response.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
	t.Run("a client that does not read", func(t *testing.T) {
		conn := h.dial(t)
		fmt.Fprint(conn, "GET /floods HTTP/1.1\r\nHost: alice.test\r\n\r\n")
		eventually(t, "under way", func() bool { return h.Stats().Live == 1 })
		eventually(t, "given up", func() bool { return h.Stats().Live == 0 })
	})
	t.Run("an instance that thinks", func(t *testing.T) {
		request, err := http.NewRequest("POST", "http://alice.test/thinks", strings.NewReader("x"))
		require.NoError(t, err)
		_, body := h.do(t, request)
		require.Equal(t, "thought", body)
		response, _ := h.get(t, "http://alice.test/thinks%20too%20long")
		require.Equal(t, http.StatusGatewayTimeout, response.StatusCode)
	})
	t.Run("a broken body", func(t *testing.T) {
		response, _ := h.raw(t, "POST", "POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
		require.Equal(t, http.StatusBadRequest, response.StatusCode)
		require.True(t, response.Close)
	})
}
