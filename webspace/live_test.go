package webspace_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// newLiveWorld is a world whose instances really listen, with a gateway in front of it.
func newLiveWorld(t testing.TB, boot, listen time.Duration) (w *world, gateway string) {
	w = newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
		f.BootDelay, f.ListenDelay, f.Port = boot, listen, 8080
		f.Serve = func(name string) http.Handler {
			return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(rw, "%s %s", name, body)
			})
		}
		w.opts.Probe = nil
		w.opts.Defaults.HTTPPort = 8080
		w.opts.Settle = -1
	})
	t.Cleanup(func() { _ = w.runtime.Close() })
	g := proxy.NewGateway(w, w, &proxy.GatewayOptions{Holds: proxy.NewHolds(&proxy.HoldLimits{Wakes: -1})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = g.Shutdown(ctx)
		<-served
	})
	return w, l.Addr().String()
}

// client sends all requests to the gateway, from an address of the loopback.
func client(gateway string, from netip.Addr) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", gateway)
		},
		DisableKeepAlives: true,
	}}
}

// herd sends first requests from many sources at once and returns how many got the webspace's answer.
func herd(t testing.TB, gateway string, sources, each int) int {
	var answered atomic.Int32
	var wg sync.WaitGroup
	from := netip.MustParseAddr("127.3.0.1")
	for range sources {
		c := client(gateway, from)
		for range each {
			wg.Go(func() {
				response, err := c.Get("http://alice.example.test/")
				if err != nil {
					t.Log(err)
					return
				}
				defer response.Body.Close()
				if body, err := io.ReadAll(response.Body); err == nil && response.StatusCode == 200 && string(body) == "ws-u1000 " {
					answered.Add(1)
				}
			})
		}
		from = from.Next()
	}
	wg.Wait()
	return int(answered.Load())
}

func TestHerd(t *testing.T) {
	w, gateway := newLiveWorld(t, 100*time.Millisecond, 100*time.Millisecond)
	<-w.Synced()
	w.create(1000)
	require.Equal(t, 200, herd(t, gateway, 50, 4))
	require.Equal(t, 1, w.runtime.Calls("Start"))
}

// Requests go on being answered while the webspace is stopped, restarted and killed under them.
func TestRequestsUnderLifecycle(t *testing.T) {
	w, gateway := newLiveWorld(t, 5*time.Millisecond, 5*time.Millisecond)
	<-w.Synced()
	name := w.create(1000)
	ctx, cancel := context.WithCancel(t.Context())
	var sent, lost atomic.Int32
	var wg sync.WaitGroup
	c := client(gateway, netip.MustParseAddr("127.3.0.1"))
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				response, err := c.Get("http://alice.example.test/")
				if sent.Add(1); err != nil {
					lost.Add(1)
					continue
				}
				if response.StatusCode != 200 {
					lost.Add(1)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
		})
	}
	for n := range 20 {
		switch n % 4 {
		case 0, 2:
			_ = w.Stop(t.Context(), 1000)
		case 1:
			_ = w.Restart(t.Context(), 1000)
		case 3:
			_, err := w.EnsureStarted(t.Context(), 1000)
			require.NoError(t, err)
			at := w.instance(name).Address
			w.runtime.SetAddress(name, at.Next().Next())
		}
	}
	cancel()
	wg.Wait()
	require.Positive(t, sent.Load())
	// Only a request that had begun when its instance was taken away under it can be lost.
	require.LessOrEqual(t, lost.Load(), int32(5*4))
	endpoint, err := w.Activate(t.Context(), proxy.Target{Webspace: name, Port: 8080})
	require.NoError(t, err)
	endpoint.Release(nil)
	require.Equal(t, webspace.StatusRunning, w.instance(name).Status)
}

func TestNothingIsLeftAfterManyLifecycles(t *testing.T) {
	w, gateway := newLiveWorld(t, 0, 0)
	<-w.Synced()
	c := client(gateway, netip.MustParseAddr("127.3.0.1"))
	lifecycles := func(n int) {
		for range n {
			w.create(1000)
			response, err := c.Get("http://alice.example.test/")
			require.NoError(t, err)
			require.Equal(t, 200, response.StatusCode)
			require.NoError(t, response.Body.Close())
			require.NoError(t, w.Delete(t.Context(), 1000))
		}
	}
	lifecycles(10)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	lifecycles(500)
	require.Eventually(t, func() bool {
		return runtime.NumGoroutine() <= goroutines+5 && openFiles(t) <= files+5
	}, 10*time.Second, 50*time.Millisecond, "%d goroutines were %d, %d files were %d", runtime.NumGoroutine(), goroutines, openFiles(t), files)
	require.Empty(t, w.Summaries())
}

// openFiles counts the descriptors of this process, where the system tells.
func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Log(err)
	}
	return len(entries)
}
