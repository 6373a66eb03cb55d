package openapi_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// TestPublicQuestions has many ask what needs no token: the engine is asked once a second.
func TestPublicQuestions(t *testing.T) {
	for path, status := range map[string]int{"/v1/images": 200, "/health": 204} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int32
			fake := runtimetest.NewFake(&runtimetest.FakeOptions{Before: func(_ context.Context, op, _ string) error {
				if op == "Images" || op == "Get" {
					asked.Add(1)
					time.Sleep(100 * time.Millisecond)
				}
				return nil
			}})
			a := newAPIOn(t, fake, &openapi.Options{Recheck: time.Hour, Limits: openapi.Limits{Rate: -1}})
			flood := func() {
				var wg sync.WaitGroup
				for range 50 {
					wg.Go(func() {
						if got := a.as(t, "", "GET", path, "").StatusCode; got != status {
							t.Errorf("%s: %d", path, got)
						}
					})
				}
				wg.Wait()
			}
			flood()
			require.LessOrEqual(t, asked.Load(), int32(1), path)
			time.Sleep(2 * time.Second)
			flood()
			require.EqualValues(t, 2, asked.Load(), path)
		})
	}
}

// TestHealthDeadline asks for the health of an engine that does not answer.
func TestHealthDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIOn(t, runtimetest.NewFake(&runtimetest.FakeOptions{Before: func(ctx context.Context, op, _ string) error {
			if op == "Get" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}), nil)
		begin := time.Now()
		require.Equal(t, 500, a.as(t, "", "GET", "/health", "").StatusCode)
		require.Equal(t, 2*time.Second, time.Since(begin))
	})
}
