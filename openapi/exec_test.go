package openapi_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// TestCommandLimit runs more commands at a time than a webspace may.
func TestCommandLimit(t *testing.T) {
	const limit, tries = 4, 20
	release := make(chan struct{})
	a := newAPI(t, &runtimetest.FakeOptions{Before: func(ctx context.Context, op, _ string) error {
		if op != "Exec" {
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	createAlice(t, a)
	exec := func() *httptest.ResponseRecorder {
		req := httptest.NewRequest("POST", "/v1/webspace/self/exec", strings.NewReader(`{"command":"true"}`))
		req.Header.Set("Authorization", "Bearer alice-token")
		rec := httptest.NewRecorder()
		a.ServeHTTP(rec, req)
		return rec
	}
	answers := make(chan *httptest.ResponseRecorder, tries)
	var wg sync.WaitGroup
	for range tries {
		wg.Go(func() { answers <- exec() })
	}
	for range tries - limit {
		rec := <-answers
		require.Equal(t, 429, rec.Code, rec.Body)
		require.NotEmpty(t, rec.Header().Get("Retry-After"))
	}
	close(release)
	wg.Wait()
	for range limit {
		require.Equal(t, 200, (<-answers).Code)
	}
	require.Equal(t, 200, exec().Code, "there is room again")
}

// TestShutdownKillsCommands ends a server while a command runs.
func TestShutdownKillsCommands(t *testing.T) {
	running := make(chan struct{})
	a := newAPI(t, &runtimetest.FakeOptions{Before: func(ctx context.Context, op, _ string) error {
		if op != "Exec" {
			return nil
		}
		close(running)
		<-ctx.Done()
		return ctx.Err()
	}})
	createAlice(t, a)
	var wg sync.WaitGroup
	wg.Go(func() {
		resp := a.as(t, "alice-token", "POST", "/v1/webspace/self/exec", `{"command":"sleep 100"}`)
		if resp.StatusCode != 503 {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
	<-running
	require.NoError(t, a.server.Shutdown(t.Context()))
	wg.Wait()
}
