package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// probes connect at a steady rate, each on a connection of its own: to the gateway, and to a forwarded port.
type probes struct {
	gateway, port string
	done, failed  atomic.Int64
	mu            sync.Mutex
	errors        []error
}

func (p *probes) run(ctx context.Context, interval time.Duration, n int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for i := range n {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		address := []string{p.gateway, p.port}[i%2]
		wg.Go(func() {
			defer p.done.Add(1)
			if err := probe(address, i); err != nil {
				p.failed.Add(1)
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.errors) < 10 {
					p.errors = append(p.errors, fmt.Errorf("%s, probe %d of %s: %w", time.Now().Format("15:04:05.000"), i, address, err))
				}
			}
		})
	}
}

// probe asks for alice's page on a new connection, from one of a hundred addresses: a guest that falls behind is no reason
// for a limit per source.
func probe(address string, i int) error {
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%100))}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: alice.ws.example.test\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// A daemon replaces another on the same addresses, and no connection is lost. Then one is killed: what it loses is what it
// had, and what comes before the next one is there.
func TestReplacement(t *testing.T) {
	e := testbed.LXD(t)
	e.ImportImage(t, "hello", testbed.Image{})
	first := startDaemon(t, e, e.Prefix, func(string) string { return "timeouts: {unready: 5s}\n" })
	t.Cleanup(func() { e.Delete(t, e.Prefix+"u1000") })
	first.create(t, "alice", "hello")
	var forward struct{ EPort int }
	require.Equal(t, http.StatusCreated, first.do(t, "alice", "POST", "/webspace/self/ports/80", nil, &forward))
	p := &probes{gateway: first.gateway, port: net.JoinHostPort("127.0.0.1", strconv.Itoa(forward.EPort))}
	require.NoError(t, probe(p.gateway, 0)) // boots it
	require.Eventually(t, func() bool { return probe(p.port, 0) == nil }, 30*time.Second, 100*time.Millisecond)

	// A connection stays where it is: this one asks the first daemon.
	connection := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: 10 * time.Second}
	defer connection.CloseIdleConnections()
	ready := func() int {
		t.Helper()
		res, err := connection.Get("http://" + first.api + "/readyz")
		require.NoError(t, err)
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	require.Equal(t, http.StatusNoContent, ready())

	const rate = 4 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var probing sync.WaitGroup
	probing.Go(func() { p.run(ctx, rate, 10_000) })
	waitFor := func(n int64) {
		t.Helper()
		require.Eventually(t, func() bool { return p.done.Load() >= n }, time.Minute, 10*time.Millisecond)
	}
	waitFor(1000)
	second := &daemon{api: first.api, gateway: first.gateway, config: first.config}
	t.Cleanup(func() {
		second.kill()
		if t.Failed() {
			t.Logf("the second daemon said:\n%s", second.logs.String())
		}
	})
	second.start(t)
	// The new one says so itself once it has read the webspaces; the old one may be asked as well, and says it long since.
	require.Eventually(t, func() bool { return second.logs.contains("read all webspaces") }, 30*time.Second, 20*time.Millisecond)
	waitFor(p.done.Load() + 500) // both serve
	require.NoError(t, first.cmd.Process.Signal(syscall.SIGTERM))
	waitFor(p.done.Load() + 500)
	require.Equal(t, http.StatusServiceUnavailable, ready(), "it still serves, and says that it is about to end")
	<-first.ended
	require.Equal(t, 0, first.cmd.ProcessState.ExitCode(), first.logs.String())
	probing.Wait()
	t.Logf("%d probes", p.done.Load())
	require.EqualValues(t, 10_000, p.done.Load())
	require.Empty(t, p.errors)

	p.done.Store(0)
	probing.Go(func() { p.run(ctx, rate, 10_000) })
	waitFor(1000)
	third := &daemon{api: first.api, gateway: first.gateway, config: first.config}
	t.Cleanup(third.kill)
	killed := time.Now()
	second.kill()
	third.start(t)
	require.Eventually(t, func() bool { return third.logs.contains("read all webspaces") }, 30*time.Second, 5*time.Millisecond)
	t.Logf("killed and ready again in %v", time.Since(killed).Round(time.Millisecond))
	probing.Wait()
	t.Logf("%d of %d probes failed", p.failed.Load(), p.done.Load())
	require.LessOrEqual(t, p.failed.Load(), int64(100), "at least 99 % succeed: %v", p.errors)
}
