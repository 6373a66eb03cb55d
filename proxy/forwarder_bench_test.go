package proxy_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkForwarderThroughput compares a download through the forwarder with the same one straight from its target.
func BenchmarkForwarderThroughput(b *testing.B) {
	const size = 64 << 20
	chunk := make([]byte, 256<<10)
	target := server(b, func(conn *net.TCPConn) {
		for range size / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
	compare(b, target, func(conn net.Conn) {
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, make([]byte, 256<<10))
		require.NoError(b, err)
		require.EqualValues(b, size, n)
	})
	b.SetBytes(size)
}

// BenchmarkForwarderConnection compares short connections: open, one byte there and back, close.
func BenchmarkForwarderConnection(b *testing.B) {
	one := make([]byte, 1)
	compare(b, echo(b), func(conn net.Conn) {
		_, err := conn.Write(one)
		require.NoError(b, err)
		_, err = conn.Read(one)
		require.NoError(b, err)
	})
}

// BenchmarkForwarderRoundTrip compares round trips on a warm connection.
func BenchmarkForwarderRoundTrip(b *testing.B) {
	one := make([]byte, 1)
	compare(b, echo(b), func(conn net.Conn) {
		for range 100 {
			_, err := conn.Write(one)
			require.NoError(b, err)
			_, err = conn.Read(one)
			require.NoError(b, err)
		}
	})
}

// compare uses a connection through a forwarder, which is what is measured, and one straight to its target in turn, so that
// whatever else the machine does slows both down.
func compare(b *testing.B, target netip.AddrPort, use func(net.Conn)) {
	h := forwarder(b, running(target), nil)
	port := netip.AddrPortFrom(loopback, uint16(h.open(b, db)))
	do := func(address netip.AddrPort) time.Duration {
		began := time.Now()
		conn, err := net.Dial("tcp", address.String())
		require.NoError(b, err)
		use(conn)
		require.NoError(b, conn.Close())
		return time.Since(began)
	}
	var straight, through time.Duration
	for b.Loop() {
		through += do(port)
		b.StopTimer()
		straight += do(target)
		b.StartTimer()
	}
	b.ReportMetric(float64(through)/float64(straight), "times-direct")
}
