package integration_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
	"github.com/netsoc/webspaced/webspace/lxd"
)

// BenchmarkColdRequest measures how long the first request to a stopped webspace takes to its first byte, against how long
// the runtime itself takes from the start to the open port. "added-ms" is what webspaced adds (aim: at most 20).
func BenchmarkColdRequest(b *testing.B) {
	onEachRuntime(b, func(b *testing.B, h *house) {
		var own, cold time.Duration
		for b.Loop() {
			own += h.boot(b)
			h.stop(b)
			started := time.Now()
			require.NoError(b, h.get(netip.MustParseAddr("127.0.0.1")))
			cold += time.Since(started)
			h.stop(b)
		}
		b.ReportMetric(own.Seconds()*1000/float64(b.N), "runtime-ms")
		b.ReportMetric(cold.Seconds()*1000/float64(b.N), "first-byte-ms")
		b.ReportMetric((cold-own).Seconds()*1000/float64(b.N), "added-ms")
		b.ReportMetric(0, "ns/op") // the sum of all of it says nothing
	})
}

// BenchmarkHerd sends 1,000 first requests at once, from 250 addresses, to a stopped webspace. All must be answered, by one
// start.
func BenchmarkHerd(b *testing.B) {
	onEachRuntime(b, func(b *testing.B, h *house) {
		const sources, each = 250, 4
		var failed, starts int64
		for b.Loop() {
			before := h.starts.Load()
			var wg sync.WaitGroup
			var failures atomic.Int64
			for i := range sources {
				source := netip.AddrFrom4([4]byte{127, 200, byte(i), 1})
				for range each {
					wg.Go(func() {
						if err := h.get(source); err != nil {
							failures.Add(1)
							b.Log(err)
						}
					})
				}
			}
			wg.Wait()
			failed += failures.Load()
			starts += h.starts.Load() - before
			h.stop(b)
		}
		b.ReportMetric(float64(failed)/float64(b.N), "failed/herd")
		b.ReportMetric(float64(starts)/float64(b.N), "starts/herd")
	})
}

// house is a gateway before one webspace.
type house struct {
	webspace.Runtime // counts starts
	starts           atomic.Int64

	manager *webspace.Manager
	gateway string
	port    int
}

const (
	benchUser = identity.UserID(1000)
	benchName = "bench-u1000"
)

func (h *house) Start(ctx context.Context, name string) error {
	h.starts.Add(1)
	return h.Runtime.Start(ctx, name)
}

func onEachRuntime(b *testing.B, run func(*testing.B, *house)) {
	b.Run("lxd", func(b *testing.B) {
		e := testbed.LXD(b)
		runtime, err := lxd.Connect(b.Context(), &lxd.Options{Socket: e.Socket, Profile: e.Profile, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(b, err)
		b.Cleanup(func() { e.Delete(b, benchName) })
		run(b, newHouse(b, runtime, e.Image, 80))
	})
	b.Run("local", func(b *testing.B) {
		runtime, err := local.New(filepath.Join(b.TempDir(), "instances"), nil)
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, runtime.Close()) })
		run(b, newHouse(b, runtime, "hello", 8080))
	})
}

func newHouse(b *testing.B, runtime webspace.Runtime, image string, port int) *house {
	h := &house{Runtime: runtime, port: port}
	user := identity.User{ID: benchUser, Username: "alice"}
	users, err := static.New([]static.Account{{User: user, Token: "alice"}})
	require.NoError(b, err)
	h.manager, err = webspace.NewManager(h, users, "example.test", &webspace.Options{
		Prefix: "bench-", Defaults: webspace.Config{HTTPPort: port, StartupDelay: 10 * time.Second},
		Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.manager.Run(ctx) })
	gateway := proxy.NewGateway(h.manager, h.manager, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	wg.Go(func() { _ = gateway.Serve(l) })
	h.gateway = l.Addr().String()
	b.Cleanup(func() {
		_ = gateway.Shutdown(context.Background())
		_ = h.manager.Delete(context.Background(), benchUser)
		cancel()
		_ = h.manager.Close()
		wg.Wait()
	})
	_, err = h.manager.Create(b.Context(), user, webspace.CreateRequest{Image: image})
	require.NoError(b, err)
	return h
}

// boot starts the instance by the runtime alone and returns how long it takes until its port is open.
func (h *house) boot(b *testing.B) time.Duration {
	started := time.Now()
	require.NoError(b, h.Runtime.Start(b.Context(), benchName))
	instance, err := h.Runtime.Get(b.Context(), benchName)
	require.NoError(b, err)
	at := net.JoinHostPort(instance.Address.String(), strconv.Itoa(h.port))
	// A SYN that gets lost comes again only after a second, so a new one is sent every few milliseconds.
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	open := make(chan time.Duration, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	for {
		wg.Go(func() {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", at)
			if err != nil {
				return
			}
			_ = conn.Close()
			select {
			case open <- time.Since(started):
			default:
			}
		})
		select {
		case took := <-open:
			return took
		case <-every.C:
		case <-ctx.Done():
			b.Fatal("the port does not open")
		}
	}
}

func (h *house) stop(b *testing.B) {
	require.NoError(b, h.manager.Stop(b.Context(), benchUser))
}

// get asks the gateway for the webspace's page, from an address of the loopback.
func (h *house) get(source netip.Addr) error {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
	client := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}, Timeout: time.Minute}
	req, err := http.NewRequest(http.MethodGet, "http://"+h.gateway+"/", nil)
	if err != nil {
		return err
	}
	req.Host = "alice.example.test"
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return &statusError{res.Status}
	}
	return nil
}

type statusError struct{ status string }

func (e *statusError) Error() string { return "answered with " + e.status }
