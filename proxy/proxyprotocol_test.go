package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

var balancers = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}

// header is what a balancer sends first.
func header(t testing.TB, version byte, source string) string {
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source)),
		net.TCPAddrFromAddrPort(netip.MustParseAddrPort("198.18.0.1:443")))
	bytes, err := h.Format()
	require.NoError(t, err)
	return string(bytes)
}

func TestProxyProtocol(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	conns := proxy.NewConns(nil)
	limited := conns.Listen(proxy.ProxyProtocol(l, balancers))
	defer limited.Close()
	balancer := netip.MustParseAddr("127.0.0.2")
	silent := dialFrom(t, balancer, port) // nobody waits for it
	defer silent.Close()
	local, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	require.NoError(t, err)
	for name, test := range map[string]struct {
		from       netip.Addr
		first      string
		want, data string
	}{
		"version 1":  {balancer, header(t, 1, "198.18.0.9:1234"), "198.18.0.9:1234", "hello"},
		"version 2":  {balancer, header(t, 2, "198.18.0.9:1234"), "198.18.0.9:1234", "hello"},
		"local":      {balancer, string(local), "", "hello"},
		"unknown":    {balancer, "PROXY UNKNOWN\r\n", "", "hello"},
		"other peer": {loopback, "", "", "hello"},
		"liar":       {loopback, "", "", header(t, 1, "198.18.0.9:1234")},
	} {
		t.Run(name, func(t *testing.T) {
			client := dialFrom(t, test.from, port)
			for _, part := range []string{test.first, test.data} {
				_, err := io.WriteString(client, part)
				require.NoError(t, err)
			}
			conn, err := limited.Accept()
			require.NoError(t, err)
			defer conn.Close()
			want := test.want
			if want == "" {
				want = client.LocalAddr().String()
			}
			require.Equal(t, want, conn.RemoteAddr().String())
			require.Implements(t, (*interface{ CloseWrite() error })(nil), conn)
			got := make([]byte, len(test.data))
			_, err = io.ReadFull(conn, got)
			require.NoError(t, err)
			require.Equal(t, test.data, string(got))
		})
	}
	require.Zero(t, conns.Stats().Open)
	for _, bad := range []string{"GET / HTTP/1.1\r\nHost: alice.test\r\n\r\n", "PROXY TCP4 nonsense\r\n", "PROXY " + strings.Repeat("x", 200)} {
		client := dialFrom(t, balancer, port)
		_, err := io.WriteString(client, bad)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, client)
		if err != nil {
			require.ErrorContains(t, err, "reset")
		}
	}
	require.NoError(t, limited.Close())
	_, err = limited.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	_, _ = io.Copy(io.Discard, silent) // it has ended as well
}

// A balancer's header goes through to the instance, and the limits count the clients that it names.
func TestForwarderProxyProtocol(t *testing.T) {
	target := server(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	h := forwarder(t, running(target), &proxy.ForwarderOptions{
		TrustedProxies: balancers, ProxyProtocol: true, Limits: proxy.HoldLimits{Source: 1},
	})
	port := h.open(t, db)
	first := header(t, 2, "198.18.0.9:1234")
	conn := dialFrom(t, balancers[0].Addr(), port)
	_, err := io.WriteString(conn, first)
	require.NoError(t, err)
	got := make([]byte, len(first))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, first, string(got))
	echoes(t, conn, "hello")
	other := dialFrom(t, balancers[0].Addr(), port)
	_, err = io.WriteString(other, header(t, 2, "198.18.0.9:4321"))
	require.NoError(t, err)
	wasReset(t, other)
	require.EqualValues(t, 1, h.Stats().RefusedSource)

	direct := dialPort(t, port)
	want, err := proxyproto.HeaderProxyFromAddrs(2, direct.LocalAddr(), direct.RemoteAddr()).Format()
	require.NoError(t, err)
	got = make([]byte, len(want))
	_, err = direct.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(direct, got)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestGatewayProxyProtocol(t *testing.T) {
	address := instance(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) })
	gateway := proxy.NewGateway(alice, running(address), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- gateway.Serve(proxy.NewConns(nil).Listen(proxy.ProxyProtocol(l, balancers))) }()
	conn := dialFrom(t, balancers[0].Addr(), l.Addr().(*net.TCPAddr).Port)
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	fmt.Fprint(conn, header(t, 2, "198.18.0.9:1234")+"GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: close\r\n\r\n")
	all, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(all), "\r\n\r\n198.18.0.9"), "%s", all)
	require.NoError(t, gateway.Shutdown(t.Context()))
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}
