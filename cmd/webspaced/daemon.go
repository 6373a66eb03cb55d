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

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
)

// daemon is what serve and demo have in common: a Manager behind an API, a gateway and a forwarder.
type daemon struct {
	manager  *webspace.Manager
	api      *openapi.Server
	guard    func(http.Handler) http.Handler // before the API; nil: none
	gateway  *proxy.Gateway
	startup  time.Duration  // how long requests wait until the webspaces have been read
	unready  time.Duration  // how long it goes on serving once it has been told to end
	shutdown time.Duration  // how long requests under way may take after that
	proxies  []netip.Prefix // in front of the API and the gateway
	log      *slog.Logger

	apiListener, gatewayListener net.Listener
	open                         func(context.Context) error // opens them, once webspaces are known; nil: they are open

	forwarder *proxy.Forwarder // the Manager opens its ports
}

// listen opens a listener that a successor can open as well, and says in words what to do about the usual mistakes.
func listen(ctx context.Context, key, address string) (net.Listener, error) {
	l, err := proxy.Listen(ctx, address)
	return l, listenError(key, err)
}

func listenError(key string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w (ports below 1024 take root or CAP_NET_BIND_SERVICE)", key, err)
	case err != nil:
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// run serves until ctx ends, or until a listener breaks. Then it says that it is not ready, leaves new connections to a
// successor if there is one, and goes on serving for a while. After that it takes no more connections, answers the requests
// that are under way, held ones among them, and returns. Webspaces and routes stay as they are.
func (d *daemon) run(ctx context.Context) error {
	server := &http.Server{
		Handler:           d.api,
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
		server.Handler = d.guard(d.api)
	}
	var leaving atomic.Bool
	server.Handler = yielding(&leaving, server.Handler)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// Held requests need the Manager to the end.
	managing, stopManaging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopManaging()
	var wg sync.WaitGroup
	serve := func(what string, fn func() error) {
		wg.Go(func() {
			if err := fn(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	// Each has limits of its own, so that a flood of visitors never keeps the API's users out.
	apiConns := proxy.NewConns(&proxy.ConnLimits{Total: min(512, max(proxy.MaxConns()/6, 1)), Exempt: d.proxies})
	gatewayConns := proxy.NewConns(&proxy.ConnLimits{Exempt: d.proxies})
	wg.Go(func() { _ = d.manager.Run(managing) })
	if d.open != nil {
		// Of two that listen, both get connections. Who is new takes none before it knows the webspaces.
		d.awaitSync(ctx)
		if err := d.open(ctx); err != nil {
			fail(err)
		}
	}
	if context.Cause(ctx) == nil {
		serve("API", func() error { return server.Serve(apiConns.Listen(d.apiListener)) })
		serve("gateway", func() error {
			// Until host names are known, connections wait in the listener's queue; only then is a name unknown.
			d.awaitSync(ctx)
			return d.gateway.Serve(gatewayConns.Listen(d.gatewayListener))
		})
		d.log.Info("serving", "api", d.apiListener.Addr(), "gateway", d.gatewayListener.Addr(), "version", version())
	}

	<-ctx.Done()
	leaving.Store(true)
	if errors.Is(context.Cause(ctx), context.Canceled) && d.gatewayListener != nil { // else something is broken
		d.yield()
	}
	d.log.Info("shutting down", "at_most", d.shutdown)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.shutdown)
	defer cancel()
	var closing sync.WaitGroup
	closing.Go(func() {
		if err := d.api.Shutdown(ending); err != nil {
			d.log.Warn("terminals and streams of events were cut off", "error", err)
		}
	})
	closing.Go(func() {
		if err := server.Shutdown(ending); err != nil {
			d.log.Warn("API requests were cut off", "error", err)
			_ = server.Close()
		}
	})
	closing.Go(func() {
		if err := d.gateway.Shutdown(ending); err != nil {
			d.log.Warn("requests through the gateway were cut off", "error", err)
		}
	})
	closing.Go(func() {
		if err := d.forwarder.Shutdown(ending); err != nil {
			d.log.Warn("connections to forwarded ports were cut off", "error", err)
		}
	})
	closing.Wait()
	stopManaging()
	_ = d.manager.Close()
	wg.Wait()
	d.log.Info("ended; webspaces and routes stay as they are")
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// awaitSync waits until the webspaces have been read, but not for ever.
func (d *daemon) awaitSync(ctx context.Context) {
	select {
	case <-d.manager.Synced():
	case <-time.After(d.startup):
	case <-ctx.Done():
	}
}

// yield leaves what comes from now on to a successor, and serves on while there may be none, or while not everybody knows.
func (d *daemon) yield() {
	d.log.Info("not ready any more, serving on", "for", d.unready)
	d.gateway.Yield()
	err := errors.Join(proxy.Yield(d.apiListener), proxy.Yield(d.gatewayListener), d.forwarder.Yield())
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		d.log.Warn("a successor may lose connections", "error", err)
	}
	time.Sleep(d.unready) // a second signal ends the process
}

// yielding says, once that is so, that the server is not ready, and ends each connection with its next answer.
func yielding(leaving *atomic.Bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving.Load() {
			if r.URL.Path == "/readyz" {
				http.Error(w, "The server shuts down.", http.StatusServiceUnavailable)
				return
			}
			if r.Header.Get("Upgrade") == "" {
				w.Header().Set("Connection", "close")
			}
		}
		next.ServeHTTP(w, r)
	})
}
