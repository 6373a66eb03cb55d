package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
	"github.com/netsoc/webspaced/webspace/lxd"
)

type demoFlags struct {
	runtime, listen, gateway, directory, image string
	verbose                                    bool
}

func demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try webspaced on this computer, without any configuration",
		Long: "Runs webspaced on this computer with three users and one stopped webspace, which boots when it is visited.\n" +
			"It serves loopback addresses only. Nothing has to be installed: without LXD or Incus, webspaces are local\n" +
			"processes that are not isolated from this computer.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.runtime, "runtime", "auto", "auto, lxd or local; auto takes LXD or Incus if one answers and has the image")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8080", "`ADDRESS` of the API")
	flags.StringVar(&f.gateway, "gateway", "127.0.0.1:8081", "`ADDRESS` of the gateway")
	flags.StringVar(&f.directory, "directory", "", "`DIR` for local webspaces, kept for the next time (default: a temporary one)")
	flags.StringVar(&f.image, "image", "hello", "`ALIAS` of the image for alice's webspace")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "log what happens")
	return cmd
}

// demoUsers have their names as tokens, which is no secret: guardDemo sees to it that only this user can use them.
var demoUsers = []static.Account{
	{User: identity.User{ID: 1, Username: "admin", Admin: true}, Token: "admin"},
	{User: identity.User{ID: 1000, Username: "alice"}, Token: "alice"},
	{User: identity.User{ID: 1001, Username: "bob"}, Token: "bob"},
}

func demo(ctx context.Context, out, logs io.Writer, f demoFlags) (err error) {
	level := slog.LevelWarn
	if f.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: level}))
	if !slices.Contains([]string{"auto", "lxd", "local"}, f.runtime) {
		return fmt.Errorf("--runtime: %q is none of auto, lxd and local", f.runtime)
	}
	d := &daemon{startup: 5 * time.Second, shutdown: 5 * time.Second, holds: proxy.NewHolds(nil), metrics: newMetrics(), log: log}
	if d.apiPlace, err = listenLoopback("--listen", f.listen); err != nil {
		return err
	}
	defer d.apiPlace.close()
	if d.gatewayPlace, err = listenLoopback("--gateway", f.gateway); err != nil {
		return err
	}
	defer d.gatewayPlace.close()

	rt, err := demoRuntime(ctx, f, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.close()) }()
	users, err := static.New(demoUsers)
	if err != nil {
		return err
	}
	const prefix = "demo-"
	d.manager, err = webspace.NewManager(rt.Runtime, users, "localhost", &webspace.Options{
		Prefix: prefix, Defaults: webspace.Config{HTTPPort: rt.port}, StopGrace: 5 * time.Second, Logger: log,
		Observer: d.metrics.Observer(),
		Forwarder: func(m proxy.Activator) webspace.PortForwarder {
			d.forwarder = proxy.NewForwarder(m, &proxy.ForwarderOptions{Holds: d.holds, ListenAddress: loopback, Logger: log})
			return d.forwarder
		},
	})
	if err != nil {
		return err
	}
	d.api, d.guard = openapi.NewServer(d.manager, d.metrics.Authenticator(users), d.metrics.Directory(users),
		measured(&openapi.Options{Logger: log}, d.metrics, "")), guardDemo
	d.gateway = proxy.NewGateway(d.manager, d.manager, &proxy.GatewayOptions{Holds: d.holds, Logger: log})

	ctx, cancel := context.WithCancelCause(ctx)
	served := make(chan error, 1)
	go func() { served <- d.run(ctx) }()
	if err := prepareDemo(ctx, d.manager, f.image); err != nil {
		cancel(nil)
		return errors.Join(err, <-served)
	}
	_, gatewayPort, _ := net.SplitHostPort(d.gatewayPlace.String())
	fmt.Fprintf(out, demoText, rt.what, gatewayPort, d.apiPlace, rt.afterwards, rt.port)
	err = <-served
	cancel(nil)
	fmt.Fprintln(out, "\nStopping the webspaces.")
	return errors.Join(err, stopDemo(rt, prefix))
}

const demoText = `webspaced demo, %[1]s

  Alice has a webspace. It is stopped; it boots when you visit it:

    http://alice.localhost:%[2]s

  (If your browser does not find that: curl -H 'Host: alice.localhost' http://127.0.0.1:%[2]s)

  What Alice can do with it:

    curl -H 'Authorization: Bearer alice' http://%[3]s/v1/webspace/self
    curl -H 'Authorization: Bearer alice' http://%[3]s/v1/webspace/self/state
    curl -H 'Authorization: Bearer alice' http://%[3]s/v1/webspace/self/state -X DELETE   # shut down
    curl -H 'Authorization: Bearer alice' http://%[3]s/v1/webspace/self/ports/%[5]d -X POST # forward a TCP port of this computer

  Bob has none yet. He creates one, and visits http://bob.localhost:%[2]s:

    curl -H 'Authorization: Bearer bob' http://%[3]s/v1/webspace/self \
      -H 'Content-Type: application/json' -d '{"image": "hello"}'

  All of it, to try in a browser with the token "alice": http://%[3]s/swagger

  The admin's token is "admin". Control-C ends the demo; %[4]s.
`

// prepareDemo gives alice a stopped webspace, unless she has one.
func prepareDemo(ctx context.Context, m *webspace.Manager, image string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := m.Create(ctx, demoUsers[1].User, webspace.CreateRequest{Image: image})
	if err == nil || errdefs.IsAlreadyExists(err) {
		return nil
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w (--image takes the alias of another one)", err)
	}
	return err
}

// stopDemo stops what was booted: the demo's own webspaces, and nothing else that has the prefix.
func stopDemo(rt webspace.Runtime, prefix string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, account := range demoUsers {
		e := rt.Stop(ctx, prefix+"u"+account.User.ID.String(), 3*time.Second)
		if !errdefs.IsNotFound(e) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// demoParts is a runtime and what the demo has to know of it.
type demoParts struct {
	webspace.Runtime
	what, afterwards string
	port             int
	close            func() error
}

func demoRuntime(ctx context.Context, f demoFlags, log *slog.Logger) (*demoParts, error) {
	switch f.runtime {
	case "lxd":
		return demoLXD(ctx, log)
	case "local":
		return demoLocal(f)
	}
	parts, err := demoLXD(ctx, log)
	if err != nil {
		log.Debug("no LXD or Incus", "error", err)
		return demoLocal(f)
	}
	images, err := parts.Runtime.(webspace.Imager).Images(ctx)
	if err == nil && hasAlias(images, f.image) {
		return parts, nil
	}
	log.Warn("LXD or Incus answers, but has no such image; using local processes instead (--image takes the alias of another one)", "image", f.image)
	return demoLocal(f)
}

func hasAlias(images []webspace.Image, alias string) bool {
	for _, image := range images {
		for _, a := range image.Aliases {
			if a.Name == alias {
				return true
			}
		}
	}
	return false
}

func demoLXD(ctx context.Context, log *slog.Logger) (*demoParts, error) {
	runtime, err := lxd.Connect(ctx, &lxd.Options{Logger: log})
	if err != nil {
		return nil, err
	}
	return &demoParts{
		Runtime: runtime, port: 80, close: func() error { return nil },
		what:       "on LXD or Incus: each webspace is a container.",
		afterwards: "the instances demo-u* are stopped and kept",
	}, nil
}

func demoLocal(f demoFlags) (*demoParts, error) {
	directory, remove, afterwards := f.directory, func() error { return nil }, "what is in "+f.directory+" is kept"
	if directory == "" {
		temporary, err := os.MkdirTemp("", "webspaced-demo-")
		if err != nil {
			return nil, err
		}
		directory, afterwards = filepath.Join(temporary, "instances"), "nothing of it is left then"
		remove = func() error { return os.RemoveAll(temporary) }
	}
	runtime, err := local.New(directory, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--directory: %w", err), remove())
	}
	return &demoParts{
		// Port 80 of an address takes root, the other one that the image hello serves does not.
		Runtime: runtime, port: 8080,
		what:       "on local processes: a webspace is NOT isolated from this computer.",
		afterwards: afterwards,
		close:      func() error { return errors.Join(runtime.Close(), remove()) },
	}, nil
}

// listenLoopback refuses to show the demo, with its known tokens, to anybody else.
func listenLoopback(flag, address string) (*place, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s: %s is not a loopback address; the demo's tokens are known to everybody, so only this computer may reach it", flag, address)
	}
	l, err := net.Listen("tcp", address) // two demos do not share it
	if err != nil {
		return nil, explain(flag, err)
	}
	return &place{key: flag, address: address, listener: l}, nil
}
