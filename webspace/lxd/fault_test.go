package lxd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
)

func TestEngineRestart(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "outage-" + e.Name
		create(t, e, r, name, e.Image)
		require.NoError(t, r.Start(t.Context(), name))
		events := watch(t, r)
		e.Kill(t)
		events.lost(t)
		_, err := r.List(t.Context(), "")
		require.True(t, errdefs.IsUnavailable(err), err)
		require.True(t, errdefs.IsUnavailable(r.Start(t.Context(), name)))
		require.True(t, errdefs.IsUnavailable(r.Watch(t.Context(), nil)))
		e.Restart(t)
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, webspace.StatusRunning, i.Status)
		events = watch(t, r)
		require.NoError(t, r.Stop(t.Context(), name, 10*time.Second))
		events.until(t, name)
	})
}

// TestPaused calls an engine that takes connections and never answers.
func TestPaused(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, func(o *lxd.Options) { o.EventTimeout = time.Second })
		name := "paused-" + e.Name
		create(t, e, r, name, e.Image)
		require.NoError(t, r.Start(t.Context(), name))
		goroutines := runtime.NumGoroutine()
		events := watch(t, r)
		reader, writer := io.Pipe()
		defer writer.Close()
		executed := make(chan error, 1)
		begun := make(chan struct{})
		go func() {
			_, err := r.Exec(t.Context(), name, webspace.ExecOptions{
				Command: []string{"/bin/sh", "-c", "echo begun; cat"}, Stdin: reader, Stdout: closer(begun),
			})
			executed <- err
		}()
		<-begun
		paused(t, e, r, name, func() {
			events.lost(t)
			err := <-executed
			require.True(t, errdefs.IsUnavailable(err), err)
		})
		writer.Close()
		settled(t, goroutines)
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, name, i.Name)
	})
}

type closer chan struct{}

func (c closer) Write(p []byte) (int, error) { close(c); return len(p), nil }

// paused makes every call to an engine that is paused, with a deadline and with a timeout of ours.
func paused(t *testing.T, e *testbed.Engine, r *lxd.Runtime, name string, meanwhile ...func()) {
	t.Helper()
	e.Pause(t)
	defer e.Resume(t)
	calls := map[string]func(context.Context) error{
		"List": func(ctx context.Context) error { _, err := r.List(ctx, ""); return err },
		"Get":  func(ctx context.Context) error { _, err := r.Get(ctx, name); return err },
		"Create": func(ctx context.Context) error {
			return r.Create(ctx, name+"-x", webspace.CreateOptions{Image: "hello"})
		},
		"Delete":    func(ctx context.Context) error { return r.Delete(ctx, name+"-x") },
		"Start":     func(ctx context.Context) error { return r.Start(ctx, name) },
		"Stop":      func(ctx context.Context) error { return r.Stop(ctx, name+"-x", time.Second) },
		"Restart":   func(ctx context.Context) error { return r.Restart(ctx, name, time.Second) },
		"SetRecord": func(ctx context.Context) error { return r.SetRecord(ctx, name, []byte("x"), "") },
		"State":     func(ctx context.Context) error { _, err := r.State(ctx, name); return err },
		"Images":    func(ctx context.Context) error { _, err := r.Images(ctx); return err },
		"Log":       func(ctx context.Context) error { _, err := r.Log(ctx, name, 100); return err },
		"ClearLog":  func(ctx context.Context) error { return r.ClearLog(ctx, name) },
		"Watch":     func(ctx context.Context) error { return r.Watch(ctx, func(webspace.Event) {}) },
		"Exec": func(ctx context.Context) error {
			_, err := r.Exec(ctx, name, webspace.ExecOptions{Command: []string{"true"}})
			return err
		},
	}
	var group sync.WaitGroup
	for op, call := range calls {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", op, err)
			}
		})
	}
	for _, f := range meanwhile {
		f()
	}
	group.Wait()
}

// settled waits until no more than so many goroutines are left.
func settled(t *testing.T, goroutines int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > goroutines; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			require.FailNow(t, "goroutines are left", "%s", stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestCallTimeout has no deadline but our own.
func TestCallTimeout(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, func(o *lxd.Options) { o.CallTimeout = 300 * time.Millisecond })
		e.Pause(t)
		defer e.Resume(t)
		_, err := r.List(t.Context(), "")
		require.True(t, errdefs.IsUnavailable(err), err)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		err = r.Start(t.Context(), "any")
		require.True(t, errdefs.IsUnavailable(err), err)
		err = r.Watch(t.Context(), func(webspace.Event) {})
		require.True(t, errdefs.IsUnavailable(err), err)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestHalfOpen loses an event stream without a word.
func TestHalfOpen(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		p := newSwallower(t, e.Socket)
		r := connect(t, e, func(o *lxd.Options) { o.Socket, o.EventTimeout = p.socket, 600*time.Millisecond })
		events := watch(t, r)
		select {
		case err := <-events.done:
			require.NoError(t, err, "a quiet stream is not a dead one")
		case <-time.After(2 * time.Second):
		}
		p.swallow.Store(true)
		events.lost(t)
		p.swallow.Store(false)
		watch(t, r)
	})
}

// swallower is a proxy that can lose all that goes through it.
type swallower struct {
	socket  string
	swallow atomic.Bool
}

func newSwallower(t *testing.T, target string) *swallower {
	p := &swallower{socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", p.socket)
	require.NoError(t, err)
	var copies sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { l.Close(); cancel(); copies.Wait() })
	pipe := func(to, from net.Conn) {
		defer to.Close()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			if !p.swallow.Load() {
				if _, err := to.Write(buffer[:n]); err != nil {
					return
				}
			}
		}
	}
	copies.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", target)
			if err != nil {
				near.Close()
				continue
			}
			context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			copies.Go(func() { pipe(far, near) })
			copies.Go(func() { pipe(near, far) })
		}
	})
	return p
}
