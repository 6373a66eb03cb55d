package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

func event(action, source string) string {
	return fmt.Sprintf(`{"type":"lifecycle","timestamp":"2026-01-01T00:00:00Z","project":"default",`+
		`"metadata":{"action":%q,"source":%q,"context":{}}}`, action, source)
}

func TestDecodeEvent(t *testing.T) {
	for _, c := range []struct {
		data, instance string
		ok             bool
	}{
		{event("instance-started", "/1.0/instances/ws-u1"), "ws-u1", true},
		{event("instance-shutdown", "/1.0/instances/ws-u1?project=web"), "ws-u1", true},
		{event("instance-renamed", "/1.0/instances/ws-u2"), "", true},
		{event("instance-exec", "/1.0/instances/ws-u1"), "", false},
		{event("instance-ready", "/1.0/instances/ws-u1"), "", false},
		{event("instance-file-pushed", "/1.0/instances/ws-u1"), "", false},
		{event("instance-console", "/1.0/instances/ws-u1"), "", false},
		{event("instance-snapshot-created", "/1.0/instances/ws-u1"), "", false},
		{event("network-updated", "/1.0/networks/ws-u1"), "", false},
		{event("instance-started", "/1.0/instances/ws-u1/snapshots/x"), "", false},
		{event("instance-started", "/1.0/instances/../x"), "", false},
		{event("instance-started", "/1.0/instances/"), "", false},
		{event("instance-started", "%zz"), "", false},
		{strings.Replace(event("instance-started", "/1.0/instances/ws-u1"), "lifecycle", "logging", 1), "", false},
		{`{"type":"lifecycle","metadata":[]}`, "", false},
		{`{"type":"lifecycle"}`, "", false},
		{`null`, "", false},
		{``, "", false},
	} {
		got, ok := decodeEvent([]byte(c.data))
		require.Equal(t, c.ok, ok, c.data)
		require.Equal(t, webspace.Event{Instance: c.instance}, got, c.data)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(event("instance-started", "/1.0/instances/ws-u1?project=web")))
	f.Add([]byte(event("instance-renamed", "/1.0/instances/ws-u1")))
	f.Add([]byte(`{"type":"lifecycle","metadata":{"action":"instance-updated","source":"/1.0/instances/%2e%2e"}}`))
	f.Add([]byte(`{"type":"operation","metadata":{"id":"x","status_code":200}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := decodeEvent(data)
		if !ok {
			require.Zero(t, got)
		} else if got.Instance != "" {
			require.NoError(t, checkName(got.Instance))
		}
	})
}

func TestClassify(t *testing.T) {
	c := &client{timeout: 1}
	status := func(code int, text string) error { return api.StatusErrorf(code, "%s", text) }
	for _, test := range []struct {
		err   error
		class error
	}{
		{status(http.StatusNotFound, "Instance not found"), errdefs.ErrNotFound},
		{status(http.StatusBadRequest, "Instance is running"), errdefs.ErrFailedPrecondition},
		{status(http.StatusBadRequest, "Instance is not running"), errdefs.ErrFailedPrecondition},
		{status(http.StatusBadRequest, "Bad"), errFailed},
		{status(http.StatusForbidden, "not authorized"), errDenied},
		{status(http.StatusUnauthorized, "expired"), errDenied},
		{status(http.StatusTeapot, "teapot"), errFailed},
		{status(http.StatusPreconditionFailed, "ETag doesn't match"), errBusy},
		{status(http.StatusInternalServerError, "A matching non-reusable operation has now succeeded"), errBusy},
		{status(http.StatusInternalServerError, `Instance is busy running a "start" operation`), errBusy},
		{status(http.StatusConflict, `IP address "198.18.0.2" already defined on another NIC`), errAddressTaken},
		{status(http.StatusConflict, `Instance "x" already exists`), errdefs.ErrAlreadyExists},
		{status(http.StatusServiceUnavailable, "starting"), errdefs.ErrUnavailable},
		{status(http.StatusInternalServerError, "disk on fire"), errFailed},
		{operationError("The instance is already running"), errAlready},
		{operationError("The instance is already stopped"), errAlready},
		{operationError("Failed to run: forkstart"), errFailed},
		{errors.New("connection refused"), errdefs.ErrUnavailable},
		{fmt.Errorf("Get: %w", context.DeadlineExceeded), errdefs.ErrUnavailable},
	} {
		got := c.classify(t.Context(), test.err)
		require.ErrorIs(t, got, test.class, test.err)
		require.NotErrorIs(t, got, context.DeadlineExceeded)
	}
	require.True(t, errdefs.IsUnavailable(errFailed) && errdefs.IsUnavailable(errDenied) && errdefs.IsUnavailable(errNoCommand))
	require.True(t, errdefs.IsConflict(errBusy) && errdefs.IsConflict(errAddressTaken) && errdefs.IsFailedPrecondition(errAlready))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.classify(ended, errors.New("closed")), context.Canceled)
	require.NoError(t, c.classify(ended, nil))
}

func TestTail(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 10<<10)
	for _, limit := range []int64{-1, 0, 1, 100, 32 << 10, 100_000, int64(len(text)), 1 << 20} {
		got, err := tail(iotest.HalfReader(strings.NewReader(text)), limit)
		require.NoError(t, err)
		require.Equal(t, text[len(text)-int(min(max(limit, 0), int64(len(text)))):], string(got), "limit %d", limit)
	}
	_, err := tail(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(errors.New("lost"))), 10)
	require.Error(t, err)
}
