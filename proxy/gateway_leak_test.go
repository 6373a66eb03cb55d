package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

func descriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd") // none on other systems
	return len(entries)
}

// Nothing is left after requests of all kinds, whatever became of them.
func TestGatewayLeavesNothing(t *testing.T) {
	round := func(n int) {
		t.Run("round", func(t *testing.T) {
			address := instance(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/upgrade":
					echoUpgrade(w, r)
				case "/abort":
					_, _ = io.WriteString(w, "half")
					panic(http.ErrAbortHandler)
				case "/early":
					w.WriteHeader(413)
				default:
					_, _ = io.Copy(w, r.Body)
				}
			})
			down := closedPort(t)
			var turn atomic.Int64
			activator := &fakeActivator{
				ready: func(proxy.Target) (netip.AddrPort, bool) { return address, turn.Add(1)%3 == 0 },
				activate: func(ctx context.Context, _ proxy.Target) (netip.AddrPort, error) {
					switch turn.Add(1) % 5 {
					case 0:
						return down, nil
					case 1:
						return netip.AddrPort{}, &proxy.Failure{Reason: "No.", Err: errdefs.ErrUnavailable}
					}
					return address, nil
				},
			}
			h := serve(t, alice, activator, nil)
			kinds := []func(){
				func() { h.get(t, "http://alice.test/") },
				func() { h.get(t, "http://unknown.test/") },
				func() {
					request, _ := http.NewRequest("POST", "http://alice.test/", strings.NewReader("body"))
					h.do(t, request)
				},
				func() { // early answers, with the client still sending
					response, err := h.client.Post("http://alice.test/early", "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
					if err == nil {
						response.Body.Close()
					}
				},
				func() { // answers that are cut off
					response, err := h.client.Get("http://alice.test/abort")
					if err == nil {
						_, _ = io.Copy(io.Discard, response.Body)
						response.Body.Close()
					}
				},
				func() { // upgrades, left in different ways
					conn := h.dial(t)
					fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: alice.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
					if turn.Load()%2 == 0 {
						_ = conn.CloseWrite()
						_, _ = io.Copy(io.Discard, conn)
					}
					conn.Close()
				},
				func() { // clients that leave
					conn := h.dial(t)
					fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 10\r\n\r\nabc")
					conn.Close()
				},
				func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancel()
					request, _ := http.NewRequestWithContext(ctx, "GET", "http://alice.test/", nil)
					if response, err := h.client.Do(request); err == nil {
						response.Body.Close()
					} else if !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				},
				func() { h.raw(t, "GET", "nonsense\r\n\r\n") },
			}
			slots := make(chan struct{}, 16)
			var group sync.WaitGroup
			for i := range n {
				slots <- struct{}{}
				group.Go(func() { defer func() { <-slots }(); kinds[i%len(kinds)]() })
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
		runtime.Gosched()
		time.Sleep(10 * time.Millisecond)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
}
