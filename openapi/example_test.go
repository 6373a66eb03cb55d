package openapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// A server of the API, and a client that creates a webspace on it.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	users, err := static.New([]static.Account{{User: identity.User{ID: 1000, Username: "alice"}, Token: "secret"}})
	if err != nil {
		panic(err)
	}
	manager, err := webspace.NewManager(runtimetest.NewFake(nil), users, "localhost", &webspace.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	defer manager.Close()
	go manager.Run(ctx)
	server := httptest.NewServer(openapi.NewServer(manager, users, users, &openapi.Options{Logger: slog.New(slog.DiscardHandler)}))
	defer server.Close()

	alice, err := openapi.Connect(server.URL, "secret", nil)
	if err != nil {
		panic(err)
	}
	_, err = alice.GetStateWithResponse(ctx, "self")
	fmt.Println(errdefs.IsNotFound(err))
	created, err := alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello"})
	if err != nil {
		panic(err)
	}
	fmt.Println(created.JSON201.User)
	// Output:
	// true
	// 1000
}
