package proxy_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkTLSGatewayThroughput compares a download that is passed through with the same one straight from its target.
func BenchmarkTLSGatewayThroughput(b *testing.B) {
	const size = 64 << 20
	buffer := make([]byte, 256<<10)
	compareTLS(b, func(conn *tls.Conn) { _, _ = io.CopyN(conn, zeros{}, size) }, func(conn *tls.Conn) {
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, buffer)
		require.NoError(b, err)
		require.EqualValues(b, size, n)
	})
	b.SetBytes(size)
}

// BenchmarkTLSGatewayConnection compares short connections: open, handshake, one byte there and back, close.
func BenchmarkTLSGatewayConnection(b *testing.B) { benchmarkRoundTrips(b, 1) }

// BenchmarkTLSGatewayRoundTrip compares round trips on a warm connection.
func BenchmarkTLSGatewayRoundTrip(b *testing.B) { benchmarkRoundTrips(b, 500) }

func benchmarkRoundTrips(b *testing.B, n int) {
	one := make([]byte, 1)
	compareTLS(b, func(conn *tls.Conn) { _, _ = io.Copy(conn, conn) }, func(conn *tls.Conn) {
		for range n {
			_, err := conn.Write(one)
			require.NoError(b, err)
			_, err = conn.Read(one)
			require.NoError(b, err)
		}
	})
}

// compareTLS uses a connection through a TLS gateway and one straight to its target in turn.
func compareTLS(b *testing.B, handle, use func(*tls.Conn)) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(b, "alice.test")}}
	target := server(b, func(tcp *net.TCPConn) {
		conn := tls.Server(tcp, config)
		defer conn.Close()
		handle(conn)
	})
	h := tlsGateway(b, running(target), nil)
	through := netip.AddrPortFrom(loopback, uint16(h.port))
	do := func(address netip.AddrPort) time.Duration {
		began := time.Now()
		conn, err := tls.Dial("tcp", address.String(), &tls.Config{ServerName: "alice.test", InsecureSkipVerify: true})
		require.NoError(b, err)
		use(conn)
		require.NoError(b, conn.Close())
		return time.Since(began)
	}
	var direct, passed time.Duration
	for b.Loop() {
		passed += do(through)
		b.StopTimer()
		direct += do(target)
		b.StartTimer()
	}
	b.ReportMetric(float64(passed)/float64(direct), "times-direct")
}
