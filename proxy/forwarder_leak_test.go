package proxy_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/proxy"
)

// Nothing is left after connections of all kinds, whatever became of them.
func TestForwarderLeavesNothing(t *testing.T) {
	round := func(n int) {
		t.Run("round", func(t *testing.T) {
			address, down := echo(t), closedPort(t)
			rude := server(t, func(conn *net.TCPConn) { _ = conn.SetLinger(0) })
			var turn atomic.Int64
			h := forwarder(t, &fakeActivator{
				ready: func(proxy.Target) (netip.AddrPort, bool) { return address, turn.Add(1)%3 == 0 },
				activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
					switch turn.Add(1) % 7 {
					case 0:
						return down, nil
					case 1:
						return netip.AddrPort{}, &proxy.Failure{Reason: "No.", Err: errdefs.ErrUnavailable}
					case 2:
						return rude, nil
					}
					return address, nil
				},
			}, nil)
			port := h.open(t, db)
			kinds := []func(*net.TCPConn){
				func(conn *net.TCPConn) {
					_, _ = io.WriteString(conn, "hello")
					_ = conn.CloseWrite()
					_, _ = io.Copy(io.Discard, conn)
				},
				func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "hello") },
				func(conn *net.TCPConn) {},
				func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "hello"); _ = conn.SetLinger(0) },
				func(conn *net.TCPConn) { _, _ = conn.Write(make([]byte, 1<<20)) },
				func(conn *net.TCPConn) {
					other := h.open(t, db)
					h.Forward(other, proxy.Target{Webspace: "bob", Port: 1})
					h.Unforward(other)
				},
			}
			slots := make(chan struct{}, 16)
			var group sync.WaitGroup
			for i := range n {
				slots <- struct{}{}
				group.Go(func() {
					defer func() { <-slots }()
					conn := dialPort(t, port)
					defer conn.Close()
					kinds[i%len(kinds)](conn)
				})
			}
			group.Wait()
		})
	}
	round(20) // whatever is made once
	runtime.GC()
	eventually(t, "quiet", func() bool { n := runtime.NumGoroutine(); runtime.Gosched(); return runtime.NumGoroutine() <= n })
	goroutines, fds := runtime.NumGoroutine(), descriptors()
	round(500)
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > goroutines || descriptors() > fds {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", runtime.NumGoroutine(), goroutines, descriptors(), fds,
				stacks[:runtime.Stack(stacks, true)])
		}
		runtime.GC() // the pipes of splice(2) are in a pool
		time.Sleep(10 * time.Millisecond)
	}
}
