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
	"time"

	"github.com/netsoc/webspaced/metrics"
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
	holds    *proxy.Holds // of gateway and forwarder
	metrics  *metrics.Metrics
	startup  time.Duration  // how long requests wait until the webspaces have been read
	shutdown time.Duration  // how long requests under way may take once it has been told to end
	proxies  []netip.Prefix // in front of the API and the gateway
	log      *slog.Logger

	apiListener, gatewayListener net.Listener

	forwarder *proxy.Forwarder // the Manager opens its ports
}

// listen opens a listener, and says in words what to do about the usual mistakes.
func listen(key, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%s: %w (ports below 1024 take root or CAP_NET_BIND_SERVICE)", key, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// run serves until ctx ends, or until a listener breaks. Then it takes no more connections, answers the requests that
// are under way, held ones among them, and returns. Webspaces and routes stay as they are.
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
	if err := d.collect(apiConns, gatewayConns); err != nil {
		return err
	}
	serve("API", func() error { return server.Serve(apiConns.Listen(d.apiListener)) })
	serve("gateway", func() error {
		// Until host names are known, connections wait in the listener's queue; only then is a name unknown.
		select {
		case <-d.manager.Synced():
		case <-time.After(d.startup):
		case <-ctx.Done():
		}
		return d.gateway.Serve(gatewayConns.Listen(d.gatewayListener))
	})
	wg.Go(func() { _ = d.manager.Run(managing) })
	d.log.Info("serving", "api", d.apiListener.Addr(), "gateway", d.gatewayListener.Addr(), "version", version())

	<-ctx.Done()
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
