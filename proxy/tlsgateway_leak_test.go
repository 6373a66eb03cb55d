package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// Nothing is left after connections of all kinds, and after ten thousand whose clients have left meanwhile.
func TestTLSGatewayLeavesNothing(t *testing.T) {
	hello := records(clientHello(t, &tls.Config{ServerName: "alice.test"}), 1<<14)
	round := func(n int) {
		t.Run("round", func(t *testing.T) {
			address, down := secure(t), closedPort(t)
			var turn atomic.Int64
			h := tlsGateway(t, &fakeActivator{
				ready: func(proxy.Target) (netip.AddrPort, bool) { return address, turn.Add(1)%3 == 0 },
				activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
					switch turn.Add(1) % 4 {
					case 0:
						return down, nil
					case 1:
						return netip.AddrPort{}, &proxy.Failure{Reason: "No.", Err: errdefs.ErrUnavailable}
					case 2:
						return address, nil
					}
					<-ctx.Done()
					return netip.AddrPort{}, ctx.Err()
				},
			}, &proxy.TLSGatewayOptions{HoldTimeout: 200 * time.Millisecond})
			kinds := []func(*net.TCPConn){
				func(conn *net.TCPConn) {
					secured := tls.Client(conn, &tls.Config{ServerName: "alice.test", InsecureSkipVerify: true})
					if secured.Handshake() == nil {
						says(t, secured, "hello")
						_ = secured.Close()
					}
				},
				func(conn *net.TCPConn) {},
				func(conn *net.TCPConn) { _, _ = conn.Write(hello[:50]) },
				func(conn *net.TCPConn) { _, _ = conn.Write(hello) },
				func(conn *net.TCPConn) { _, _ = conn.Write(hello); _ = conn.SetLinger(0) },
				func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "nonsense") },
				func(conn *net.TCPConn) {
					_ = tls.Client(conn, &tls.Config{ServerName: "nobody.test", InsecureSkipVerify: true}).Handshake()
				},
			}
			slots := make(chan struct{}, 16)
			var group sync.WaitGroup
			for i := range n {
				slots <- struct{}{}
				group.Go(func() {
					defer func() { <-slots }()
					conn, err := tryFrom(netip.Addr{}, h.port)
					require.NoError(t, err)
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
					kinds[i%len(kinds)](conn.(*net.TCPConn))
				})
			}
			group.Wait()
		})
	}
	leave := func(n int) {
		t.Run("leave", func(t *testing.T) {
			h := tlsGateway(t, booting(netip.AddrPort{}, nil), nil)
			for range n {
				conn, err := tryFrom(netip.Addr{}, h.port)
				require.NoError(t, err)
				_, err = conn.Write(hello)
				require.NoError(t, err)
				require.NoError(t, conn.(*net.TCPConn).SetLinger(0))
				require.NoError(t, conn.Close())
			}
			eventually(t, "nobody is held", func() bool { return h.Stats().Holds.Held == 0 && h.Stats().Live == 0 && h.conns.Stats().Open == 0 })
		})
	}
	round(20) // whatever is made once
	leave(100)
	runtime.GC()
	goroutines, fds := runtime.NumGoroutine(), descriptors()
	round(350)
	leave(10_000)
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines || descriptors() > fds; {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), goroutines, descriptors(), fds,
				stacks[:runtime.Stack(stacks, true)])
		}
		runtime.GC() // the pipes of splice(2) are in a pool
		time.Sleep(10 * time.Millisecond)
	}
}
