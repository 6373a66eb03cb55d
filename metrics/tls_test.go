package metrics_test

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTLSGateway has clients ask for a host that nobody has, and say nothing that makes sense.
func TestTLSGateway(t *testing.T) {
	w := newWorld(t, 1, nil, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() { _ = w.edge.Serve(l) }()
	_, err = tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: canary + ".example.test"})
	require.ErrorContains(t, err, "unrecognized name")
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost: " + canary + "\r\n\r\n"))
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		samples, _ := w.scrape(t)
		require.Equal(c, 2.0, samples[`webspaced_accepted_connections_total{front_end="tls_gateway"}`])
		require.Equal(c, 1.0, samples[`webspaced_tls_rejected_connections_total{reason="unknown_name"}`])
		require.Equal(c, 1.0, samples[`webspaced_tls_rejected_connections_total{reason="malformed"}`])
	}, 10*time.Second, 10*time.Millisecond)
}
