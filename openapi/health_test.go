package openapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// TestUnready asks a server that has not read its webspaces yet.
func TestUnready(t *testing.T) {
	users := newUsers(t)
	manager, err := webspace.NewManager(runtimetest.NewFake(nil), users, "localhost", &webspace.Options{Logger: quiet})
	require.NoError(t, err)
	server := openapi.NewServer(manager, users, users, &openapi.Options{Logger: quiet})
	for path, status := range map[string]int{"/livez": 204, "/health": 204, "/readyz": 503, "/v1/webspaces": 503} {
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Authorization", "Bearer admin-token")
		rec := httptest.NewRecorder()
		server.ServeHTTP(rec, req)
		require.Equal(t, status, rec.Code, path)
	}
}

// TestProblem has owner and admin told why a webspace could not be booted.
func TestProblem(t *testing.T) {
	a := newAPI(t, &runtimetest.FakeOptions{Before: func(_ context.Context, op, _ string) error {
		if op == "Start" {
			return errors.New("out of loop devices")
		}
		return nil
	}})
	createAlice(t, a)
	problem := func() *string {
		var state openapi.State
		require.NoError(t, json.Unmarshal([]byte(bodyOf(t, a.as(t, "alice-token", "GET", "/v1/webspace/self/state", ""))), &state))
		return state.Problem
	}
	require.Nil(t, problem())
	require.Equal(t, 503, a.as(t, "admin-token", "POST", "/internal/alice/ensure-started", "").StatusCode)
	require.NotNil(t, problem())
	require.Contains(t, *problem(), "could not be started")
	require.Contains(t, bodyOf(t, a.as(t, "admin-token", "GET", "/v1/webspaces", "")), "could not be started")
}
