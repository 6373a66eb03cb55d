// Command embed runs webspaces as a library: alice has one, and http://alice.localhost:8081 boots it.
package main

import (
	"cmp"
	"context"
	"log"
	"net"
	"os"
	"os/signal"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
)

func main() {
	local.Main() // the instances of the local runtime run this very program
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	runtime := must(local.New(cmp.Or(os.Getenv("DIRECTORY"), "webspaces"), nil)) // or lxd.Connect(ctx, nil)
	defer runtime.Close()
	alice := identity.User{ID: 1000, Username: "alice"}
	users := must(static.New([]static.Account{{User: alice, Token: "secret"}}))
	manager := must(webspace.NewManager(runtime, users, "localhost", &webspace.Options{
		Defaults: webspace.Config{HTTPPort: 8080},
	}))
	defer manager.Close()
	go manager.Run(ctx)

	if _, err := manager.Create(ctx, alice, webspace.CreateRequest{Image: "hello"}); err != nil && !errdefs.IsAlreadyExists(err) {
		log.Fatal(err)
	}
	gateway := proxy.NewGateway(manager, manager, nil)
	context.AfterFunc(ctx, func() { gateway.Shutdown(context.Background()) })
	listener := must(net.Listen("tcp", cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:8081")))
	log.Printf("alice's webspace is at %s, under the name alice.localhost", listener.Addr())
	log.Print(gateway.Serve(listener))
	manager.Stop(context.Background(), alice.ID) // or leave it running: the next start finds it
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
