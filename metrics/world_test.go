package metrics_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/metrics"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// canary is in every name and token of a world. It must never be in the metrics.
const canary = "canary"

// world is all of a webspaced, wired as the daemon does, on a fake runtime. All its instances are one web server.
type world struct {
	metrics  *metrics.Metrics
	manager  *webspace.Manager
	api      *openapi.Server
	gateway  *proxy.Gateway
	edge     *proxy.TLSGateway
	holds    *proxy.Holds
	routes   *providertest.Fake
	accounts []static.Account
}

// newWorld has n users. The options' Before is the fake runtime's.
func newWorld(t testing.TB, n int, fake *runtimetest.FakeOptions, holds *proxy.HoldLimits) *world {
	quiet := slog.New(slog.DiscardHandler)
	w := &world{metrics: metrics.New("1.2.3"), holds: proxy.NewHolds(holds), routes: providertest.NewFake()}
	for i := range n {
		name := fmt.Sprintf("%s%d", canary, i)
		w.accounts = append(w.accounts, static.Account{
			User: identity.User{ID: identity.UserID(1000 + i), Username: name, Admin: i == 0}, Token: name + "-token",
		})
	}
	users, err := static.New(w.accounts)
	require.NoError(t, err)
	auth, directory := w.metrics.Authenticator(users), w.metrics.Directory(users)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	t.Cleanup(server.Close)
	address := netip.MustParseAddrPort(server.Listener.Addr().String())
	runtime := runtimetest.NewFake(fake)
	t.Cleanup(func() { require.NoError(t, runtime.Close()) })
	var forwarder *proxy.Forwarder
	w.manager, err = webspace.NewManager(oneAddress{runtime, address.Addr()}, directory, "example.test", &webspace.Options{
		Defaults: webspace.Config{HTTPPort: int(address.Port())}, Logger: quiet, Gateway: "http://gateway:8081",
		Provider: w.metrics.Provider(w.routes), Observer: w.metrics.Observer(), Settle: -1,
		Forwarder: func(m proxy.Activator) webspace.PortForwarder {
			forwarder = proxy.NewForwarder(m, &proxy.ForwarderOptions{Holds: w.holds, ListenAddress: netip.MustParseAddr("127.0.0.1")})
			return forwarder
		},
	})
	require.NoError(t, err)
	w.gateway = proxy.NewGateway(w.manager, w.manager, &proxy.GatewayOptions{Holds: w.holds})
	w.edge = proxy.NewTLSGateway(w.manager, w.manager, &proxy.TLSGatewayOptions{Holds: w.holds})
	w.api = openapi.NewServer(w.manager, auth, directory, &openapi.Options{
		Logger: quiet, Metrics: w.metrics.Handler(""), Observe: w.metrics.ObserveRequest,
	})
	conns := proxy.NewConns(nil)
	require.NoError(t, w.metrics.Collect(metrics.Sources{
		Manager: w.manager, Gateway: w.gateway, Forwarder: forwarder, TLS: w.edge, Holds: w.holds, GatewayConns: conns, APIConns: proxy.NewConns(nil),
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.manager.Run(ctx) })
	t.Cleanup(func() {
		ending, end := context.WithTimeout(context.Background(), 5*time.Second)
		defer end()
		_ = w.gateway.Shutdown(ending)
		_ = w.edge.Shutdown(ending)
		_ = forwarder.Shutdown(ending)
		cancel()
		_ = w.manager.Close()
		running.Wait()
	})
	return w
}

// oneAddress is a fake runtime of which all instances are at one address.
type oneAddress struct {
	*runtimetest.Fake
	address netip.Addr
}

func (r oneAddress) at(i webspace.Instance) webspace.Instance {
	if i.Address.IsValid() {
		i.Address = r.address
	}
	return i
}

func (r oneAddress) Get(ctx context.Context, name string) (webspace.Instance, error) {
	i, err := r.Fake.Get(ctx, name)
	return r.at(i), err
}

func (r oneAddress) List(ctx context.Context, prefix string) ([]webspace.Instance, error) {
	list, err := r.Fake.List(ctx, prefix)
	for i := range list {
		list[i] = r.at(list[i])
	}
	return list, err
}

func (w *world) create(t testing.TB, i int) {
	_, err := w.manager.Create(t.Context(), w.accounts[i].User, webspace.CreateRequest{Image: "hello"})
	require.NoError(t, err)
}

// visit sends a request through the gateway and returns the status.
func (w *world) visit(i int) int {
	req := httptest.NewRequest("GET", "/"+canary, nil)
	req.Host = w.accounts[i].User.Username + ".example.test"
	rec := httptest.NewRecorder()
	w.gateway.ServeHTTP(rec, req)
	return rec.Code
}

// call sends a request to the API, with the token of the i-th user.
func (w *world) call(i int, method, path string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, nil)
	req.Header.Set("Authorization", "Bearer "+w.accounts[i].Token)
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, req)
	return rec
}

// scrape returns the samples, by name and labels as they are written.
func (w *world) scrape(t testing.TB) (samples map[string]float64, text string) {
	req := httptest.NewRequest("GET", "/metrics", nil)
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, req)
	require.Equal(t, 200, rec.Code)
	text = rec.Body.String()
	samples = map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		var value float64
		_, err := fmt.Sscan(line[at+1:], &value)
		require.NoError(t, err, line)
		samples[line[:at]] = value
	}
	return samples, text
}

// serve serves the API on the loopback, for a real Prometheus, and returns its address.
func (w *world) serve(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &http.Server{Handler: w.api}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}
