package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netsoc/webspaced/metrics"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
)

// daemon is what serve and demo have in common: a Manager behind an API, a gateway and a forwarder.
type daemon struct {
	manager   *webspace.Manager
	api       *openapi.Server
	guard     func(http.Handler) http.Handler // before the API; nil: none
	gateway   *proxy.Gateway
	edge      *proxy.TLSGateway // nil: there is none
	forwarder *proxy.Forwarder  // the Manager opens its ports
	holds     *proxy.Holds      // of all that hold
	metrics   *metrics.Metrics
	others    []server
	tasks     []func(context.Context) // that run as long as the Manager does
	startup   time.Duration           // how long requests wait until the webspaces have been read
	unready   time.Duration           // how long it goes on serving once it has been told to end
	shutdown  time.Duration           // how long requests under way may take after that
	proxies   []netip.Prefix          // in front of the API and the gateway
	balancers []netip.Prefix          // in front of the gateway, who begin connections with a PROXY header
	log       *slog.Logger

	apiPlace, gatewayPlace, edgePlace *place

	leaving atomic.Bool // it has been told to end
}

// server serves a place until it is told to shut down.
type server struct {
	what     string
	place    *place
	serve    func(net.Listener) error
	shutdown func(context.Context) error
	cut      string // what a shutdown that takes too long does
}

// place is an address that the daemon listens at.
type place struct {
	key, address string
	shared       bool // another daemon listens there

	mu       sync.Mutex
	listener net.Listener // nil as long as another daemon of ours serves it
}

func (p *place) get() net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listener
}

// open listens, if that has not been done before.
func (p *place) open(ctx context.Context) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		return p.listener, nil
	}
	l, err := proxy.Listen(ctx, p.address)
	if err != nil {
		return nil, explain(p.key, err)
	}
	p.listener = l
	return l, nil
}

// yield leaves new connections to a successor.
func (p *place) yield() error {
	if l := p.get(); l != nil {
		return proxy.Yield(l)
	}
	return nil
}

// newPlace listens at an address, and says in words what to do about the usual mistakes. Where another daemon of the same
// user listens, this one is to replace it, and listens once it is ready.
func newPlace(ctx context.Context, key, address string, log *slog.Logger) (*place, error) {
	p := &place{key: key, address: address}
	shared, err := proxy.CheckListen(ctx, address)
	if err == nil && shared {
		p.shared = true
		log.Warn("another process of this user serves this address as well; that is for replacing it, so end it now", "key", key, "address", address)
		return p, nil
	}
	if err == nil {
		p.listener, err = proxy.Listen(ctx, address)
	}
	if err != nil {
		return nil, explain(key, err)
	}
	return p, nil
}

// explain says what to do about an error of listening.
func explain(key string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%s: %w (ports below 1024 take root or CAP_NET_BIND_SERVICE)", key, err)
	}
	return fmt.Errorf("%s: %w", key, err)
}

// String is the address, with the port that it has.
func (p *place) String() string {
	if l := p.get(); l != nil {
		return l.Addr().String()
	}
	return p.address
}

// close closes the listener if there is one. It is idempotent.
func (p *place) close() {
	if l := p.get(); l != nil {
		_ = l.Close()
	}
}

// servers lists all that listens but the forwarder.
func (d *daemon) servers() ([]server, error) {
	api := &http.Server{
		Handler:           d.lastAnswers(d.api),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		// A command may take 5 minutes, the installation of an SSH server 10.
		WriteTimeout:   11 * time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 32 << 10,
		ConnState:      proxy.ConnState,
		ErrorLog:       slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	if d.guard != nil {
		api.Handler = d.guard(api.Handler)
	}
	// Each has limits of its own, so that a flood of visitors never keeps the API's users out.
	apiConns := proxy.NewConns(&proxy.ConnLimits{Total: min(512, max(proxy.MaxConns()/3, 1)), Exempt: d.proxies})
	gatewayConns := proxy.NewConns(&proxy.ConnLimits{Exempt: d.proxies})
	if err := d.collect(apiConns, gatewayConns); err != nil {
		return nil, err
	}
	// Limits count clients, not balancers.
	visitors := func(l net.Listener) net.Listener {
		if len(d.balancers) > 0 {
			l = proxy.ProxyProtocol(l, d.balancers)
		}
		return gatewayConns.Listen(l)
	}
	if d.edge != nil {
		d.others = append(d.others, server{
			what: "TLS gateway", place: d.edgePlace, cut: "connections with TLS were cut off",
			serve: func(l net.Listener) error {
				var terminated sync.WaitGroup
				terminated.Go(func() { _ = d.gateway.Serve(d.edge.Terminated()) })
				defer terminated.Wait()
				return d.edge.Serve(visitors(l))
			},
			shutdown: d.edge.Shutdown,
		})
	}
	return append([]server{
		{
			what: "API", place: d.apiPlace, cut: "API requests were cut off",
			serve: func(l net.Listener) error { return api.Serve(apiConns.Listen(l)) },
			shutdown: func(ctx context.Context) error {
				// The one knows nothing of terminals, and waits for streams of events that the other ends.
				var ending sync.WaitGroup
				ending.Go(func() {
					if err := d.api.Shutdown(ctx); err != nil {
						d.log.Warn("terminals and streams of events were cut off", "error", err)
					}
				})
				err := api.Shutdown(ctx)
				if err != nil {
					_ = api.Close()
				}
				ending.Wait()
				return err
			},
		},
		{
			what: "gateway", place: d.gatewayPlace, cut: "requests through the gateway were cut off",
			serve:    func(l net.Listener) error { return d.gateway.Serve(visitors(l)) },
			shutdown: d.gateway.Shutdown,
		},
	}, d.others...), nil
}

// run serves until ctx ends, or until a listener breaks. Then it takes no more connections, answers the requests that
// are under way, held ones among them, and returns. Webspaces and routes stay as they are.
func (d *daemon) run(ctx context.Context) error {
	told := ctx // to end; what it says as the cause differs between versions of Go
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// Held requests need the Manager to the end.
	managing, stopManaging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopManaging()
	servers, err := d.servers()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			if err := d.serve(ctx, s); err != nil && !errors.Is(err, http.ErrServerClosed) {
				fail(fmt.Errorf("%s: %w", s.what, err))
			}
		})
	}
	wg.Go(func() { _ = d.manager.Run(managing) })
	for _, task := range d.tasks {
		wg.Go(func() { task(managing) })
	}
	d.log.Info("serving", "api", d.apiPlace.String(), "gateway", d.gatewayPlace.String(), "version", version())

	<-ctx.Done()
	if told.Err() != nil {
		d.yield(servers)
	}
	d.log.Info("shutting down", "at_most", d.shutdown)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.shutdown)
	defer cancel()
	var closing sync.WaitGroup
	for _, s := range append(servers, server{cut: "connections to forwarded ports were cut off", shutdown: d.forwarder.Shutdown}) {
		closing.Go(func() {
			if err := s.shutdown(ending); err != nil {
				d.log.Warn(s.cut, "error", err)
			}
		})
	}
	closing.Wait()
	stopManaging()
	_ = d.manager.Close()
	wg.Wait()
	d.log.Info("ended; webspaces and routes stay as they are")
	if told.Err() == nil {
		return context.Cause(ctx)
	}
	return nil
}

// serve listens, at once or when this daemon is ready to take over, and serves.
func (d *daemon) serve(ctx context.Context, s server) error {
	// Until host names are known, connections wait in the listener's queue; only then is a name unknown. The API says for
	// itself how far things are.
	if s.place != d.apiPlace || s.place.get() == nil {
		select {
		case <-d.manager.Synced():
		case <-time.After(d.startup):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	l, err := s.place.open(ctx)
	if err != nil {
		return err
	}
	return s.serve(l)
}

// lastAnswers ends each connection with its next answer once the daemon has been told to end, so that clients open new ones.
func (d *daemon) lastAnswers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.leaving.Load() && r.Header.Get("Upgrade") == "" {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// yield leaves new connections to a successor, if there is one, and goes on serving: those who look at /readyz before they
// send somebody here need a moment, and so does what is on its way.
func (d *daemon) yield(servers []server) {
	d.log.Info("about to end; still serving", "for", d.unready)
	d.api.Unready()
	d.gateway.Yield()
	d.leaving.Store(true)
	errs := []error{d.forwarder.Yield()}
	for _, s := range servers {
		errs = append(errs, s.place.yield())
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Debug("some addresses can not be left to a successor", "error", err)
	}
	time.Sleep(d.unready)
}
