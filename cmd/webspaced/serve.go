package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/netsoc/webspaced/internal/config"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
	"github.com/netsoc/webspaced/webspace/lxd"
)

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var args []string
			if path != "" {
				args = append(args, path)
			}
			c, err := loadConfig(cmd, args)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, newLogger(c))
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration `FILE` (default: ./webspaced.yaml, /etc/webspaced/webspaced.yaml or /run/config/webspaced.yaml)")
	return cmd
}

func newLogger(c *config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.LogLevel.Level()}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

func serve(ctx context.Context, c *config.Config, log *slog.Logger) (err error) {
	// First what can be wrong with this host, then what may be slow to answer.
	d := &daemon{
		startup: c.Timeouts.Startup, unready: c.Timeouts.Unready, shutdown: c.Timeouts.Shutdown,
		proxies: c.Gateway.TrustedProxies, balancers: c.Gateway.ProxyProtocolFrom, holds: newHolds(c), metrics: newMetrics(), log: log,
	}
	if d.apiPlace, err = newPlace(ctx, "http.listen_address", string(c.HTTP.ListenAddress), log); err != nil {
		return err
	}
	defer d.apiPlace.close()
	if d.gatewayPlace, err = newPlace(ctx, "gateway.http_listen_address", string(c.Gateway.HTTPListenAddress), log); err != nil {
		return err
	}
	defer d.gatewayPlace.close()
	if c.Gateway.TLSListenAddress != "" {
		if d.edgePlace, err = newPlace(ctx, "gateway.tls_listen_address", string(c.Gateway.TLSListenAddress), log); err != nil {
			return err
		}
		defer d.edgePlace.close()
	}
	auth, users, closeUsers, err := newUsers(c, d.metrics, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeUsers()) }()
	routes, closeRoutes, err := newRoutes(ctx, c, d)
	if err != nil {
		return fmt.Errorf("traefik: %w", err)
	}
	defer func() { err = errors.Join(err, closeRoutes()) }()
	issuer, closeIssuer, err := newIssuer(ctx, c, d.gatewayPlace.shared, log)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	defer func() { err = errors.Join(err, closeIssuer()) }()
	runtime, closeRuntime, err := newRuntime(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRuntime()) }()
	opts := managerOptions(c, d.metrics.Provider(routes), log)
	opts.Observer = d.metrics.Observer()
	if err := certify(opts, c, issuer); err != nil {
		return err
	}
	opts.Forwarder = func(m proxy.Activator) webspace.PortForwarder {
		// Ports that somebody shares with us are those of the daemon that this one replaces, or not ours to take.
		d.forwarder = proxy.NewForwarder(m, forwarderOptions(c, d.holds, d.gatewayPlace.shared, log))
		forwarder, e := d.inService(c, d.forwarder)
		err = e
		return forwarder
	}
	warnOfEphemeralPorts(opts.Ports, log)
	manager, failed := webspace.NewManager(runtime, users, string(c.Webspaces.Domain), opts)
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	d.manager = manager
	d.api = openapi.NewServer(d.manager, auth, users, measured(apiOptions(c, log), d.metrics, c.HTTP.MetricsToken.Reveal()))
	d.gateway = proxy.NewGateway(d.manager, d.manager, gatewayOptions(c, issuer, d.holds, log))
	if d.edgePlace != nil {
		d.edge = proxy.NewTLSGateway(d.manager, d.manager, tlsOptions(c, issuer, d))
	}
	return d.run(ctx)
}

func apiOptions(c *config.Config, log *slog.Logger) *openapi.Options {
	var origins []string
	for _, origin := range c.HTTP.CORS.AllowedOrigins {
		origins = append(origins, string(origin))
	}
	limits := c.HTTP.Limits
	return &openapi.Options{
		Logger: log, AllowedOrigins: origins, Recheck: recheck(c),
		Limits: openapi.Limits{
			Rate: float64(limits.Rate), Burst: limits.Burst,
			ExpensiveRate: float64(limits.ExpensiveRate), ExpensiveBurst: limits.ExpensiveBurst,
		},
	}
}

func newRuntime(ctx context.Context, c *config.Config, log *slog.Logger) (webspace.Runtime, func() error, error) {
	if c.Runtime == "local" {
		log.Warn("the local runtime isolates nothing: every webspace runs with the daemon's own rights")
		runtime, err := local.New(c.Local.Directory, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("local.directory: %w", err)
		}
		return runtime, runtime.Close, nil
	}
	opts := &lxd.Options{
		Socket: c.LXD.UnixSocket, Project: c.LXD.Project, Profile: c.Webspaces.LXDProfile,
		CA: c.LXD.TLS.CA, ServerCert: c.LXD.TLS.ServerCert,
		ClientCert: c.LXD.TLS.ClientCert, ClientKey: c.LXD.TLS.ClientKey.Reveal(),
		TrustPassword: c.LXD.TLS.TrustPassword.Reveal(), InsecureSkipVerify: c.LXD.TLS.AllowInsecure,
		Logger: log,
	}
	if !c.LXD.URL.IsZero() {
		opts.URL = c.LXD.URL.String()
	}
	// After a reboot of the host the engine may come up later than we do.
	deadline := time.Now().Add(c.Timeouts.Startup)
	for {
		runtime, err := lxd.Connect(ctx, opts)
		if err == nil {
			return runtime, func() error { return nil }, nil
		}
		if !errdefs.IsUnavailable(err) || time.Now().After(deadline) || ctx.Err() != nil {
			return nil, nil, fmt.Errorf("connect to LXD or Incus: %w", err)
		}
		log.Warn("LXD or Incus does not answer yet", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func managerOptions(c *config.Config, routes provider.Provider, log *slog.Logger) *webspace.Options {
	opts := &webspace.Options{
		Prefix: c.Webspaces.InstancePrefix,
		Defaults: webspace.Config{
			StartupDelay:   c.Webspaces.ConfigDefaults.StartupDelay,
			HTTPPort:       c.Webspaces.ConfigDefaults.HTTPPort,
			SNIPassthrough: c.Webspaces.ConfigDefaults.SNIPassthrough,
		},
		MaxStartupDelay: c.Webspaces.MaxStartupDelay,
		Provider:        routes,
		Mode:            webspace.Mode(c.Traefik.Mode),
		Settle:          c.Traefik.Settle,
		AddressTimeout:  c.Webspaces.IPTimeout,
		Ports:           webspace.PortRange{First: c.Webspaces.Ports.Start, Last: c.Webspaces.Ports.End, Max: c.Webspaces.Ports.Max},
		Logger:          log,
	}
	if opts.Settle == 0 {
		opts.Settle = -1 // to the Manager, zero means its default
	}
	if !c.Traefik.WebspacedURL.IsZero() {
		opts.Gateway = c.Traefik.WebspacedURL.Origin()
	}
	switch {
	case c.Gateway.TLSListenAddress == "":
	case c.Traefik.Provider == "none":
		opts.TLSGateway = "tcp://localhost:443" // nobody has to find it, but it is there
	default:
		opts.TLSGateway = "tcp://" + string(c.Traefik.WebspacedTLS)
	}
	return opts
}

// newHolds bounds what is held by the gateway and the forwarder together.
func newHolds(c *config.Config) *proxy.Holds {
	return proxy.NewHolds(&proxy.HoldLimits{
		Webspace: c.Gateway.MaxHeldPerWebspace, Source: c.Gateway.MaxHeldPerSource, Total: c.Gateway.MaxHeld,
		Wakes: c.Gateway.MaxWakes, Exempt: c.Gateway.TrustedProxies,
	})
}

// tcpLimits bound the connections that are passed on as they are.
func tcpLimits(c *config.Config) proxy.HoldLimits {
	return proxy.HoldLimits{Source: c.Gateway.MaxTCPPerSource, Exempt: c.Gateway.TrustedProxies}
}

func forwarderOptions(c *config.Config, holds *proxy.Holds, replaces bool, log *slog.Logger) *proxy.ForwarderOptions {
	opts := &proxy.ForwarderOptions{
		Holds: holds, HoldTimeout: c.Gateway.HoldTimeout, Shared: true, Replaces: replaces,
		TrustedProxies: c.Gateway.ProxyProtocolFrom, ProxyProtocol: c.Webspaces.Ports.ProxyProtocol,
		Limits: tcpLimits(c), IdleTimeout: c.Gateway.TCPIdleTimeout, Logger: log,
	}
	if c.Runtime == "local" {
		opts.ListenAddress = loopback // nothing isolates its instances from this host
	}
	return opts
}

func gatewayOptions(c *config.Config, issuer tlsprovider.Issuer, holds *proxy.Holds, log *slog.Logger) *proxy.GatewayOptions {
	opts := &proxy.GatewayOptions{
		Holds:          holds,
		HoldTimeout:    c.Gateway.HoldTimeout,
		TrustedProxies: c.Gateway.TrustedProxies,
		Logger:         log,
	}
	if challenger, ok := issuer.(tlsprovider.Challenger); ok {
		opts.Challenge = challenger.HandleChallenge
	}
	if _, ok := issuer.(tlsprovider.Holder); ok && c.Traefik.Provider == "none" {
		opts.HTTPSPort = c.Gateway.HTTPSPort
	}
	return opts
}
