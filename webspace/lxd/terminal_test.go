package lxd_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
)

// One who attaches to a console that somebody is attached to is told so.
func TestConsoleTaken(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "taken-" + e.Name
		create(t, e, r, name, e.Image)
		require.NoError(t, r.Start(t.Context(), name))
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		var shown bytes.Buffer
		seen := make(chan struct{})
		var once sync.Once
		go func() {
			first <- r.Console(ctx, name, webspace.ConsoleOptions{Stdout: writer(func(p []byte) (int, error) {
				if shown.Write(p); strings.Contains(shown.String(), "attached") {
					once.Do(func() { close(seen) })
				}
				return len(p), nil
			})})
		}()
		for waiting := true; waiting; {
			shell(t, r, name, "echo attached >/dev/console")
			select {
			case <-seen:
				waiting = false
			case err := <-first:
				require.NoError(t, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
		err := r.Console(t.Context(), name, webspace.ConsoleOptions{})
		require.True(t, errdefs.IsConflict(err), err)
		cancel()
		require.ErrorIs(t, <-first, context.Canceled)
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
