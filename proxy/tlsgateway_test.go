package proxy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/nettest"

	"github.com/netsoc/webspaced/proxy"
)

// tlsHosts is a router: alice takes TLS herself, TLS for bob and carol ends at the gateway.
type tlsHosts struct{}

func (tlsHosts) RouteTLS(name string) (proxy.Target, error) {
	switch strings.ToLower(name) {
	case "alice.test":
		return proxy.Target{Webspace: "alice", Port: 443}, nil
	case "bob.test", "carol.test":
		return proxy.Target{}, fmt.Errorf("ends here: %w", errdefs.ErrFailedPrecondition)
	}
	return proxy.Target{}, errdefs.ErrNotFound
}

// certificate returns one for the given names, signed by itself.
func certificate(t testing.TB, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tower is a TLS gateway of loopback.
type tower struct {
	*proxy.TLSGateway
	activator *fakeActivator
	conns     *proxy.Conns
	port      int
}

func tlsGateway(t testing.TB, activator *fakeActivator, opts *proxy.TLSGatewayOptions) *tower {
	return boundedTLSGateway(t, activator, opts, &proxy.ConnLimits{Source: 1000})
}

func boundedTLSGateway(t testing.TB, activator *fakeActivator, opts *proxy.TLSGatewayOptions, limits *proxy.ConnLimits) *tower {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h := &tower{proxy.NewTLSGateway(tlsHosts{}, activator, opts), activator,
		proxy.NewConns(limits), l.Addr().(*net.TCPAddr).Port}
	served := make(chan error, 1)
	go func() { served <- h.Serve(h.conns.Listen(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = h.Shutdown(ctx)
		require.NoError(t, h.Shutdown(context.Background()), "again")
		require.ErrorIs(t, <-served, http.ErrServerClosed)
		require.ErrorIs(t, h.Serve(h.conns.Listen(l)), http.ErrServerClosed)
		require.Zero(t, activator.out.Load(), "endpoints not released")
		require.Zero(t, activator.doubled.Load(), "endpoints released twice")
		require.Zero(t, h.Stats().Live)
		require.Zero(t, h.Stats().Holds.Held)
		require.Zero(t, h.conns.Stats().Open)
	})
	return h
}

// client returns a TLS connection whose handshake is still to come.
func (h *tower) client(t testing.TB, name string, protocols ...string) *tls.Conn {
	return tls.Client(dialPort(t, h.port), &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols})
}

// secure is an instance with a certificate of its own, which sends back what it gets.
func secure(t testing.TB) netip.AddrPort {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t, "alice.test")}, NextProtos: []string{"acme-tls/1", "http/1.1"}}
	return server(t, func(tcp *net.TCPConn) {
		conn := tls.Server(tcp, config)
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	})
}

func says(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(conn, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

func alerted(t testing.TB, err error, description tls.AlertError) {
	t.Helper()
	var alert tls.AlertError
	if !errors.As(err, &alert) { // crypto/tls has it as text in an OpError
		require.ErrorContains(t, err, strings.TrimPrefix(description.Error(), "tls: "))
		return
	}
	require.Equal(t, description, alert)
}

func TestTLSGatewayHolds(t *testing.T) {
	boot := make(chan struct{})
	h := tlsGateway(t, booting(secure(t), boot), nil)
	conn := h.client(t, "ALICE.test", "acme-tls/1") // its own server answers its challenges
	done := make(chan error, 1)
	go func() { done <- conn.Handshake() }()
	eventually(t, "held", func() bool { return h.Stats().Holds.Held == 1 })
	close(boot)
	require.NoError(t, <-done)
	require.Equal(t, "acme-tls/1", conn.ConnectionState().NegotiatedProtocol)
	require.Equal(t, []string{"alice.test"}, conn.ConnectionState().PeerCertificates[0].DNSNames)
	says(t, conn, "hello")
	require.Zero(t, h.Stats().Holds.Held)
	require.NoError(t, conn.CloseWrite())
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, conn.Close())
	eventually(t, "nothing is left", func() bool { return h.Stats().Live == 0 && h.activator.out.Load() == 0 })
}

// clientHello returns the message that crypto/tls sends first, without its record's header.
func clientHello(t testing.TB, config *tls.Config) []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() { _ = tls.Client(client, config).Handshake(); client.Close() }()
	header := make([]byte, 5)
	_, err := io.ReadFull(server, header)
	require.NoError(t, err)
	message := make([]byte, int(header[3])<<8|int(header[4]))
	_, err = io.ReadFull(server, message)
	require.NoError(t, err)
	return message
}

// records splits a handshake message into records of n bytes.
func records(message []byte, n int) []byte {
	var all []byte
	for len(message) > 0 {
		part := message[:min(n, len(message))]
		message = message[len(part):]
		all = append(append(all, 22, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return all
}

// The instance gets the very bytes of the client, in whatever records and packets they come.
func TestTLSGatewayReplays(t *testing.T) {
	long := []string{"h2"}
	for range 100 {
		long = append(long, strings.Repeat("x", 50))
	}
	for name, config := range map[string]*tls.Config{
		"short": {ServerName: "alice.test"},
		"long":  {ServerName: "alice.test", NextProtos: long},
		"old":   {ServerName: "alice.test", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan []byte, 1)
			h := tlsGateway(t, running(server(t, func(conn *net.TCPConn) {
				all, _ := io.ReadAll(conn)
				got <- all
			})), nil)
			message := clientHello(t, config)
			for _, size := range []int{60, 1000, 1 << 14} {
				for _, packet := range []int{7, 1 << 14} {
					sent := append(records(message, size), "early"...)
					conn := dialPort(t, h.port)
					for rest := sent; len(rest) > 0; {
						n, err := conn.Write(rest[:min(packet, len(rest))])
						require.NoError(t, err)
						rest = rest[n:]
					}
					require.NoError(t, conn.CloseWrite())
					require.Equal(t, sent, <-got)
					_, err := conn.Read(make([]byte, 1))
					require.ErrorIs(t, err, io.EOF)
				}
			}
		})
	}
}

func TestTLSGatewayRefuses(t *testing.T) {
	const unrecognizedName, internalError = tls.AlertError(112), tls.AlertError(80)
	h := tlsGateway(t, &fakeActivator{activate: func(context.Context, proxy.Target) (netip.AddrPort, error) {
		return netip.AddrPort{}, &proxy.Failure{Reason: "No.", Err: errdefs.ErrFailedPrecondition}
	}}, nil)
	alerted(t, h.client(t, "alice.test").Handshake(), internalError)
	alerted(t, h.client(t, "nobody.test").Handshake(), unrecognizedName)
	alerted(t, h.client(t, "").Handshake(), unrecognizedName)
	alerted(t, h.client(t, "bob.test").Handshake(), unrecognizedName) // no TLS ends here
	require.EqualValues(t, 3, h.Stats().UnknownNames)
	require.EqualValues(t, 1, h.Stats().Failures)

	conn := dialPort(t, h.port)
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n")
	require.NoError(t, err)
	wasReset(t, conn)
	conn = dialPort(t, h.port) // a PROXY header from just anybody
	_, err = io.WriteString(conn, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
	require.NoError(t, err)
	wasReset(t, conn)
	conn = dialPort(t, h.port)
	_, err = conn.Write(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc}, make([]byte, 1<<14)...)) // 16 KiB are too many
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, conn)
	_ = err // an alert, unless more came meanwhile
	require.NoError(t, dialPort(t, h.port).Close())
	eventually(t, "counted", func() bool {
		hellos := h.Stats().Hellos
		return hellos["malformed"] == 2 && hellos["long"] == 1 && hellos["gone"] == 1
	})
	require.EqualValues(t, 1, h.activator.activations.Load())
}

// Whoever is slow to say what he wants, loses his connection and boots nothing.
func TestTLSGatewaySlowHello(t *testing.T) {
	h := tlsGateway(t, &fakeActivator{}, &proxy.TLSGatewayOptions{HelloTimeout: 300 * time.Millisecond})
	silent, slow := dialPort(t, h.port), dialPort(t, h.port)
	hello := records(clientHello(t, &tls.Config{ServerName: "alice.test"}), 1<<14)
	go func() {
		for i := range hello {
			if _, err := slow.Write(hello[i : i+1]); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	wasReset(t, silent)
	wasReset(t, slow)
	eventually(t, "counted", func() bool { return h.Stats().Hellos["slow"] == 2 && h.conns.Stats().Open == 0 })
	require.Zero(t, h.activator.activations.Load())
}

// Thousands of connections with half a ClientHello take no more descriptors than they may, keep nobody else out, and end.
// FLOOD says how many, if not 2000.
func TestTLSGatewayHalfOpen(t *testing.T) {
	const total, sources = 500, 40
	flood := 2000
	if n, err := strconv.Atoi(os.Getenv("FLOOD")); err == nil {
		flood = n
	}
	h := boundedTLSGateway(t, running(secure(t)), nil, &proxy.ConnLimits{Total: total, Source: 25})
	hello := records(clientHello(t, &tls.Config{ServerName: "alice.test"}), 1<<14)
	var most int
	for i := range flood {
		conn, err := tryFrom(netip.AddrFrom4([4]byte{127, 0, 9, byte(1 + i%sources)}), h.port)
		require.NoError(t, err)
		defer conn.Close()
		_, _ = conn.Write(hello[:len(hello)/2])
		most = max(most, h.conns.Stats().Open)
	}
	require.LessOrEqual(t, most, total)
	require.NotZero(t, h.conns.Stats().Evicted)
	began := time.Now()
	good := h.client(t, "alice.test")
	says(t, good, "hello")
	t.Logf("a good client is served in %v", time.Since(began))
	require.NoError(t, good.NetConn().Close())
	eventually(t, "all are gone", func() bool { return h.conns.Stats().Open == 0 })
}

func TestTLSGatewayClientLeavesWhileHeld(t *testing.T) {
	h := tlsGateway(t, booting(netip.AddrPort{}, nil), nil)
	hello := records(clientHello(t, &tls.Config{ServerName: "alice.test"}), 1<<14)
	for i := range 1000 {
		conn := dialPort(t, h.port)
		_, err := conn.Write(hello)
		require.NoError(t, err)
		if i%2 == 0 {
			require.NoError(t, conn.SetLinger(0))
		}
		require.NoError(t, conn.Close())
	}
	eventually(t, "free", func() bool {
		stats := h.Stats()
		return stats.Holds.Held == 0 && stats.Live == 0 && h.conns.Stats().Open == 0 &&
			stats.Accepted == 1000 && stats.ClientsGone+stats.Hellos["gone"]+stats.RefusedSource+stats.Failures == 1000
	})
}

func TestTLSGatewayLimits(t *testing.T) {
	h := tlsGateway(t, booting(netip.AddrPort{}, nil), &proxy.TLSGatewayOptions{Limits: proxy.HoldLimits{Webspace: 1}})
	first := h.client(t, "alice.test")
	go func() { _ = first.Handshake() }()
	eventually(t, "held", func() bool { return h.Stats().Live == 1 })
	second := h.client(t, "alice.test")
	alerted(t, second.Handshake(), 80)
	require.NoError(t, second.NetConn().Close())
	require.EqualValues(t, 1, h.Stats().RefusedWebspace)
	eventually(t, "what is held is not closed to make room", func() bool {
		return h.conns.Stats().Open == 1 && h.conns.Stats().Waiting == 0
	})
}

func TestTLSGatewayShutdown(t *testing.T) {
	h := tlsGateway(t, running(secure(t)), nil)
	conn := h.client(t, "alice.test")
	says(t, conn, "hello")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Shutdown(ctx) }()
	says(t, conn, "what is under way goes on")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// edge is a TLS gateway with a gateway behind it.
func edge(t testing.TB, activator *fakeActivator, opts *proxy.GatewayOptions) (*tower, *http.Client) {
	cert := certificate(t, "*.test")
	h := tlsGateway(t, activator, &proxy.TLSGatewayOptions{TLSConfig: &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	}})
	gateway := proxy.NewGateway(hosts{"bob.test": "bob", "carol.test": "carol"}, activator, opts)
	served := make(chan error, 1)
	go func() { served <- gateway.Serve(h.Terminated()) }()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		require.NoError(t, gateway.Shutdown(context.Background()))
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	return h, &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func TestTLSGatewayTerminates(t *testing.T) {
	activator := running(instance(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Host, r.Header.Get("X-Forwarded-Proto"))
	}))
	h, client := edge(t, activator, nil)
	response, err := client.Get("https://bob.test/")
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, "bob.test https", string(body))
	require.Equal(t, 2, response.ProtoMajor)

	// One connection is for one host.
	request, err := http.NewRequest(http.MethodGet, "https://bob.test/", nil)
	require.NoError(t, err)
	request.Host = "carol.test"
	response, err = client.Do(request)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusMisdirectedRequest, response.StatusCode)

	_, err = client.Get("https://nobody.test/")
	require.ErrorContains(t, err, "unrecognized name")

	// A challenge gets a certificate and no more.
	conn := h.client(t, "bob.test", "acme-tls/1")
	require.NoError(t, conn.Handshake())
	require.Equal(t, "acme-tls/1", conn.ConnectionState().NegotiatedProtocol)
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err)
	require.Zero(t, activator.activations.Load())
	eventually(t, "counted", func() bool { return h.Stats().Terminated == 2 })
}

// Clients that are not written in Go.
func TestTLSGatewayClients(t *testing.T) {
	activator := running(instance(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from "+r.Host) }))
	h, _ := edge(t, activator, nil)
	for _, args := range [][]string{{"--http1.1"}, {"--http2"}, {"--tls-max", "1.2"}} {
		args = append(args, "-sSk", "--max-time", "20", "--connect-to", fmt.Sprintf("::127.0.0.1:%d", h.port), "https://bob.test/")
		out, err := program(t, "curl", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, "hello from bob.test", string(out))
	}
	through := tlsGateway(t, running(secure(t)), nil)
	for _, args := range [][]string{{}, {"-split_send_frag", "512", "-tls1_2"}, {"-alpn", strings.Repeat("x", 200) + ",http/1.1"}} {
		cmd := program(t, "openssl", append([]string{"s_client", "-connect", fmt.Sprintf("127.0.0.1:%d", through.port),
			"-servername", "alice.test", "-ign_eof"}, args...)...)
		cmd.Stdin = strings.NewReader("hello\n")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		var all bytes.Buffer
		for chunk := make([]byte, 4096); !strings.Contains(all.String(), "\nhello\n"); {
			n, err := out.Read(chunk)
			require.NoError(t, err, "%s", &all)
			all.Write(chunk[:n])
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}

// program returns a command of a program that Debian has.
func program(t *testing.T, name string, args ...string) *exec.Cmd {
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return exec.CommandContext(t.Context(), name, args...)
}

// A connection that is passed through, held at first, is as good as any.
func TestTLSGatewayConn(t *testing.T) {
	cert := certificate(t, "alice.test")
	nettest.TestConn(t, func() (client, target net.Conn, stop func(), err error) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			return nil, nil, nil, err
		}
		boot := make(chan struct{})
		close(boot)
		h := tlsGateway(t, booting(netip.MustParseAddrPort(l.Addr().String()), boot), nil)
		// What the tests use is below TLS, behind a handshake that only brings it there.
		raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
		if err != nil {
			return nil, nil, nil, err
		}
		secured := tls.Client(raw, &tls.Config{ServerName: "alice.test", InsecureSkipVerify: true, SessionTicketsDisabled: true})
		accepted := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				err = conn.(*tls.Conn).Handshake()
				target = conn.(*tls.Conn).NetConn()
			}
			accepted <- err
		}()
		if err = secured.Handshake(); err == nil {
			err = <-accepted
		}
		return raw, target, func() {
			raw.Close()
			target.Close()
			l.Close()
			_ = h.Shutdown(t.Context())
		}, err
	})
}
