//go:build linux

package local_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
)

func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	runtime, err := local.New(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer runtime.Close()

	ctx := context.Background()
	if err := runtime.Create(ctx, "ws-u1000", webspace.CreateOptions{Image: "hello"}); err != nil {
		log.Fatal(err)
	}
	if err := runtime.Start(ctx, "ws-u1000"); err != nil {
		log.Fatal(err)
	}
	instance, err := runtime.Get(ctx, "ws-u1000")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(instance.Status, instance.Address.IsLoopback())
	if err := runtime.Stop(ctx, "ws-u1000", time.Second); err != nil {
		log.Fatal(err)
	}
	// Output: running true
}
