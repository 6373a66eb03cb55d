package runtimetest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func ExampleNewFake() {
	runtime := runtimetest.NewFake(&runtimetest.FakeOptions{
		Before: func(_ context.Context, op, name string) error {
			if op == "Stop" {
				return errors.New("the engine is on fire")
			}
			return nil
		},
	})
	ctx := context.Background()
	fmt.Println(runtime.Create(ctx, "ws-u1", webspace.CreateOptions{Image: "hello"}))
	fmt.Println(runtime.Start(ctx, "ws-u1"))
	fmt.Println(runtime.Stop(ctx, "ws-u1", 0))
	runtime.Crash("ws-u1")
	instance, _ := runtime.Get(ctx, "ws-u1")
	fmt.Println(instance.Status, runtime.Calls("Stop"))
	// Output:
	// <nil>
	// <nil>
	// the engine is on fire
	// stopped 1
}
