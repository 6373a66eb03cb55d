package webspace_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// A stopped webspace boots on its first request.
func Example() {
	runtime := runtimetest.NewFake(&runtimetest.FakeOptions{ // webspace/lxd has a real one
		Serve: func(name string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from", name) })
		},
	})
	defer runtime.Close()
	alice := identity.User{ID: 1000, Username: "Alice"}
	users, err := static.New([]static.Account{{User: alice, Token: "secret"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := webspace.NewManager(runtime, users, "example.org", &webspace.Options{
		Defaults: webspace.Config{HTTPPort: 8080},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()

	if _, err := m.Create(ctx, alice, webspace.CreateRequest{Image: "hello"}); err != nil {
		fmt.Println(err)
		return
	}
	gateway := httptest.NewServer(proxy.NewGateway(m, m, nil))
	defer gateway.Close()
	request, _ := http.NewRequest(http.MethodGet, gateway.URL, nil)
	request.Host = "alice.example.org"
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer response.Body.Close()
	_, _ = io.Copy(printer{}, response.Body)
	for _, s := range m.Summaries() {
		fmt.Println(s.Instance, s.Status, s.Hosts)
	}

	cancel()
	fmt.Println(errors.Is(<-ran, context.Canceled))
	// Output:
	// hello from ws-u1000
	// ws-u1000 running [alice.example.org]
	// true
}

type printer struct{}

func (printer) Write(p []byte) (int, error) { return fmt.Print(string(p)) }

func ExampleLabel() {
	for _, username := range []string{"alice", "Bob-2", "jürgen", "under_score"} {
		label, err := webspace.Label(username)
		fmt.Printf("%q %v\n", label, errdefs.IsInvalidArgument(err))
	}
	// Output:
	// "alice" false
	// "bob-2" false
	// "" true
	// "" true
}
