package webspace_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestShell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		_, err := w.Shell(t.Context(), 1000, "true")
		require.True(t, errdefs.IsNotFound(err))
		w.create(1000)
		got, err := w.Shell(t.Context(), 1000, "echo out; echo err >&2; pwd; id -u; exit 3")
		require.NoError(t, err)
		require.Equal(t, webspace.ShellResult{Stdout: []byte("out\n/\n0\n"), Stderr: []byte("err\n"), ExitCode: 3}, got)
		require.Equal(t, webspace.StatusRunning, w.instance("ws-u1000").Status, "it was started")
		got, err = w.Shell(t.Context(), 1000, "nonesuch")
		require.NoError(t, err)
		require.Equal(t, 127, got.ExitCode)

		for _, command := range []string{"", " \n", "true\x00", strings.Repeat("x", 64<<10+1)} {
			_, err := w.Shell(t.Context(), 1000, command)
			require.True(t, errdefs.IsInvalidArgument(err))
		}
	})
}

// What is printed beyond the limit is dropped; the command goes on.
func TestShellTruncates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.ShellTimeout = 10 * time.Minute })
		w.create(1000)
		started := time.Now()
		got, err := w.Shell(t.Context(), 1000, "echo err >&2; yes") // two bytes a millisecond
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 10*time.Minute, time.Since(started))
		require.Len(t, got.Stdout, 1<<20)
		require.True(t, got.StdoutTruncated)
		require.Equal(t, "err\n", string(got.Stderr))
		require.False(t, got.StderrTruncated)
	})
}

func TestShellEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		started := time.Now()
		got, err := w.Shell(t.Context(), 1000, "echo begun; sleep 7200")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 5*time.Minute, time.Since(started))
		require.Equal(t, "begun\n", string(got.Stdout), "what there was is told")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		started = time.Now()
		_, err = w.Shell(ctx, 1000, "sleep 7200")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(started))
	})
}

// A webspace that stops between the look and the command is started again.
func TestShellWhileItStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		var stopped atomic.Bool
		w = newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(ctx context.Context, op, name string) error {
				if op == "Exec" && stopped.CompareAndSwap(false, true) {
					return w.runtime.Stop(ctx, name, 0)
				}
				return nil
			}
		})
		w.create(1000)
		got, err := w.Shell(t.Context(), 1000, "echo hi")
		require.NoError(t, err)
		require.Equal(t, "hi\n", string(got.Stdout))
	})
}
