package provider_test

import (
	"context"
	"fmt"
	"log"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
)

// A reconciler in small: what should be, what is, and the difference applied.
func Example() {
	ctx := context.Background()
	host, err := provider.ParseHost("Alice.Example.org.")
	if err != nil {
		log.Fatal(err)
	}
	desired := []provider.Route{{Name: "ws-u1000", Hosts: []provider.Host{host}, Backend: "http://198.18.0.2:80"}}

	var p provider.Provider = providertest.NewFake() // or file.New("/etc/traefik/webspaces", nil)
	for range 2 {
		current, err := p.Routes(ctx)
		if err != nil {
			log.Fatal(err)
		}
		changes := provider.Plan(desired, current)
		for _, r := range changes.Put {
			fmt.Println("put", r.Name, r.Hosts, r.Backend)
		}
		fmt.Println("delete", changes.Delete)
		if err := p.Apply(ctx, changes); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// put ws-u1000 [alice.example.org] http://198.18.0.2:80
	// delete []
	// delete []
}
