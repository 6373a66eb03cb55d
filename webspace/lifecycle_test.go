package webspace_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestClassesOfLifecycleErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		for what, err := range map[string]error{
			"Start": w.Start(t.Context(), 1000), "Stop": w.Stop(t.Context(), 1000), "Restart": w.Restart(t.Context(), 1000),
			"Delete": w.Delete(t.Context(), 1000), "Sync": w.Sync(t.Context(), 1000), "Get": second(w.Get(t.Context(), 1000)),
			"State": second(w.State(t.Context(), 1000)), "Domains": second(w.Domains(t.Context(), w.user(1000))),
			"Log": second(w.Log(t.Context(), 1000, 10)), "ClearLog": w.ClearLog(t.Context(), 1000),
			"Exec": second(w.Exec(t.Context(), 1000, webspace.ExecOptions{Command: []string{"true"}})),
		} {
			require.True(t, errdefs.IsNotFound(err), "%s: %v", what, err)
		}
		name := w.create(1000)
		require.True(t, errdefs.IsFailedPrecondition(w.Stop(t.Context(), 1000)))
		require.True(t, errdefs.IsFailedPrecondition(w.Restart(t.Context(), 1000)))
		require.NoError(t, w.Start(t.Context(), 1000))
		require.True(t, errdefs.IsConflict(w.Start(t.Context(), 1000)))
		state, err := w.State(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, webspace.StatusRunning, state.Status)
		require.NoError(t, w.Restart(t.Context(), 1000))
		require.Equal(t, webspace.StatusRunning, w.instance(name).Status)
		log, err := w.Log(t.Context(), 1000, 1<<20)
		require.NoError(t, err)
		require.Equal(t, 2, bytes.Count(log, []byte("is up")))
		require.NoError(t, w.ClearLog(t.Context(), 1000))
		require.NoError(t, w.Stop(t.Context(), 1000))
		require.Equal(t, webspace.StatusStopped, w.instance(name).Status)
		code, err := w.Exec(t.Context(), 1000, webspace.ExecOptions{Command: []string{"true"}})
		require.NoError(t, err)
		require.Zero(t, code)
		require.Equal(t, webspace.StatusRunning, w.instance(name).Status, "it was started for the command")
		images, err := w.Images(t.Context())
		require.NoError(t, err)
		require.Len(t, images, 1)
	})
}

func TestOneOfManyStartsAndStopsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at, most atomic.Int32
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			slowBoots(w, f)
			w.opts.Settle = -1
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Start" || op == "Stop" || op == "Restart" {
					most.Store(max(most.Load(), at.Add(1)))
				}
				return nil
			}
			f.After = func(_ context.Context, op, _ string, err error) error {
				if op == "Start" || op == "Stop" || op == "Restart" {
					at.Add(-1)
				}
				return err
			}
		})
		w.create(1000)
		var wg sync.WaitGroup
		for n := range 30 {
			wg.Go(func() {
				call := []func(context.Context) error{
					func(ctx context.Context) error { return w.Start(ctx, 1000) },
					func(ctx context.Context) error { return w.Stop(ctx, 1000) },
					func(ctx context.Context) error { return w.Restart(ctx, 1000) },
				}[n%3]
				if err := call(t.Context()); err != nil && !errdefs.IsConflict(err) && !errdefs.IsFailedPrecondition(err) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, most.Load())
	})
}

func TestDeleteARunningWebspace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refuse atomic.Int32
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			slowBoots(w, f)
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Delete" && refuse.Add(-1) >= 0 {
					return errors.Join(errors.New("busy"), errdefs.ErrConflict)
				}
				return nil
			}
		})
		name := w.create(1000)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		refuse.Store(5)
		require.NoError(t, w.Delete(t.Context(), 1000))
		_, err := w.runtime.Get(t.Context(), name)
		require.True(t, errdefs.IsNotFound(err))

		// A delete that fails for good leaves a webspace that works.
		w.create(1000)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		refuse.Store(1000)
		require.True(t, errdefs.IsConflict(w.Delete(t.Context(), 1000)))
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name))
		require.NoError(t, <-w.first(t.Context(), alice))
		refuse.Store(0)
		require.NoError(t, w.Delete(t.Context(), 1000))
	})
}

func TestDeleteWhatNoEventHasToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) { f.Events.Drop = 1 })
		w.settled()
		w.runtime.Put(stored(1000, webspace.StatusRunning, netip.MustParseAddr("127.99.0.1")))
		_, err := w.EnsureStarted(t.Context(), 1000)
		require.NoError(t, err)
		w.settled()
		require.Equal(t, w.direct("ws-u1000"), w.backend("ws-u1000"))
		require.NoError(t, w.Delete(t.Context(), 1000))
		require.Empty(t, w.backend("ws-u1000"))
	})
}

func TestClosedAndStoppedManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		w.stop()
		w.stop()
		// Without Run nothing is reconciled, but calls still end.
		start := time.Now()
		require.NoError(t, w.Start(t.Context(), 1000))
		require.NoError(t, w.Stop(t.Context(), 1000))
		require.NoError(t, w.Delete(t.Context(), 1000))
		require.Less(t, time.Since(start), time.Minute)
	})
}

func TestOptions(t *testing.T) {
	bad := map[string]webspace.Options{
		"prefix":   {Prefix: "Ws_"},
		"long":     {Prefix: "abcdefghijklmnopqrstuvwxyzabcdefghijk"},
		"mode":     {Mode: "sideways"},
		"ports":    {Ports: webspace.PortRange{First: 2, Last: 1}},
		"port":     {Ports: webspace.PortRange{First: 1, Last: 70000}},
		"gateway":  {Provider: providertest.NewFake()},
		"boots":    {Boots: -1},
		"delay":    {Defaults: webspace.Config{StartupDelay: time.Hour}},
		"httpPort": {Defaults: webspace.Config{HTTPPort: 99999}},
	}
	for what, opts := range bad {
		_, err := webspace.NewManager(runtimetest.NewFake(nil), newPeople(), "example.test", &opts)
		require.True(t, errdefs.IsInvalidArgument(err), what)
	}
	_, err := webspace.NewManager(runtimetest.NewFake(nil), newPeople(), "example.test", nil)
	require.NoError(t, err)
	_, err = webspace.NewManager(runtimetest.NewFake(nil), newPeople(), "*.test", nil)
	require.True(t, errdefs.IsInvalidArgument(err))
}

func TestManagerThatNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := webspace.NewManager(runtimetest.NewFake(nil), newPeople(), "example.test", nil)
		require.NoError(t, err)
		start := time.Now()
		_, err = m.Create(t.Context(), identity.User{ID: 1000, Username: "alice"}, hello)
		require.True(t, errdefs.IsUnavailable(err))
		require.Equal(t, 10*time.Second, time.Since(start))
		_, err = m.Activate(t.Context(), alice)
		require.True(t, errdefs.IsNotFound(err))
		require.NoError(t, m.Close())
		require.ErrorIs(t, m.Run(canceled(t)), context.Canceled)
	})
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
