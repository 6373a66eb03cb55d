package openapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestRateLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIOn(t, runtimetest.NewFake(nil), &openapi.Options{Recheck: time.Hour})
		createAlice(t, a)
		get := func(token, path string) *http.Response { return a.as(t, token, "GET", path, "") }

		for range 40 {
			require.Equal(t, 200, get("alice-token", "/v1/webspace/self").StatusCode)
		}
		resp := get("alice-token", "/v1/webspace/self")
		require.Equal(t, 429, resp.StatusCode)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		require.Equal(t, 429, get("alice-token", "/v1/webspace/bob").StatusCode, "whatever it is about")
		require.Equal(t, 200, get("admin-token", "/v1/webspace/alice").StatusCode, "others are not concerned")
		require.Equal(t, 401, get("wrong", "/v1/webspace/alice").StatusCode)
		time.Sleep(time.Second)
		for range 20 {
			require.Equal(t, 200, get("alice-token", "/v1/webspace/self").StatusCode)
		}
		require.Equal(t, 429, get("alice-token", "/v1/webspace/self").StatusCode)

		// What costs has a smaller limit of its own.
		time.Sleep(time.Minute)
		for range 10 {
			require.Equal(t, 204, a.as(t, "alice-token", "PATCH", "/v1/webspace/self/state", "").StatusCode)
		}
		resp = a.as(t, "alice-token", "PATCH", "/v1/webspace/self/state", "")
		require.Equal(t, 429, resp.StatusCode)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		require.Equal(t, 200, get("alice-token", "/v1/webspace/self").StatusCode)

		// Without a token the address counts; probes and the documentation are free.
		for range 40 {
			require.Equal(t, 200, get("", "/v1/images").StatusCode)
		}
		require.Equal(t, 429, get("", "/v1/images").StatusCode)
		require.Equal(t, 204, get("", "/health").StatusCode)
		require.Equal(t, 204, get("", "/livez").StatusCode)
		require.Equal(t, 200, get("", "/swagger").StatusCode)
	})
}

// TestManyVisitors come from more addresses than are remembered.
func TestManyVisitors(t *testing.T) {
	a := newAPIOn(t, runtimetest.NewFake(nil), &openapi.Options{})
	<-a.manager.Synced()
	for i := range 12_000 {
		req := httptest.NewRequest("GET", "/v1/images", nil)
		req.RemoteAddr = fmt.Sprintf("[2001:db8:%x::1]:4000", i)
		rec := httptest.NewRecorder()
		a.ServeHTTP(rec, req)
		require.Equal(t, 200, rec.Code)
	}
	// The addresses of one network count as one.
	refused := 0
	for i := range 60 {
		req := httptest.NewRequest("GET", "/v1/images", nil)
		req.RemoteAddr = "[2001:db8:ffff::" + strconv.Itoa(i) + "]:4000"
		rec := httptest.NewRecorder()
		a.ServeHTTP(rec, req)
		if rec.Code == 429 {
			refused++
		}
	}
	require.Positive(t, refused)
}
