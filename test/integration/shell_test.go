package integration_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
)

// TestShell runs command lines in a webspace on a real LXD.
func TestShell(t *testing.T) {
	e := testbed.LXD(t)
	h := startLibrary(t, e, e.Profile, "shell-")
	_, err := h.Create(t.Context(), h.owner(), webspace.CreateRequest{Image: e.Image})
	require.NoError(t, err)
	got, err := h.Shell(t.Context(), 1000, `echo "a  b"; echo '$x' >&2; cd /etc; pwd; exit 7`)
	require.NoError(t, err, "it is started")
	require.Equal(t, webspace.ShellResult{Stdout: []byte("a  b\n/etc\n"), Stderr: []byte("$x\n"), ExitCode: 7}, got)

	got, err = h.Shell(t.Context(), 1000, "head -c 5000000 /dev/zero; head -c 1048577 /dev/zero >&2; echo end >/tmp/end; exit 3")
	require.NoError(t, err)
	require.Equal(t, 3, got.ExitCode, "it went on")
	require.Len(t, got.Stdout, 1<<20)
	require.Len(t, got.Stderr, 1<<20)
	require.True(t, got.StdoutTruncated && got.StderrTruncated)
	got, err = h.Shell(t.Context(), 1000, "head -c 1048576 /dev/zero; cat /tmp/end >&2; cat")
	require.NoError(t, err, "its input is empty")
	require.False(t, got.StdoutTruncated)
	require.Equal(t, "end\n", string(got.Stderr))

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	got, err = h.Shell(ctx, 1000, "echo begun; while :; do echo still-here >/tmp/here; sleep 0.1; done")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, "begun\n", string(got.Stdout))
	require.Eventually(t, func() bool {
		got, err := h.Shell(t.Context(), 1000, "ps")
		return err == nil && !strings.Contains(string(got.Stdout), "still-here")
	}, 10*time.Second, 100*time.Millisecond, "it is killed when its caller leaves")
}
