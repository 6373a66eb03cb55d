package webspace_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// A directory that knows nobody for a moment takes nobody's site down; one that goes on saying so is believed.
func TestOddDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.Resync = time.Minute })
		name := func(id int) string { return "user" + webspaceUser(id).String() }
		for id := range 20 {
			w.users.add(webspaceUser(id), name(id))
			w.create(webspaceUser(id))
		}
		w.settled()
		everybody := func(found bool) {
			t.Helper()
			for id := range 20 {
				_, err := w.Route(name(id) + ".example.test")
				require.Equal(t, found, err == nil, name(id))
			}
		}
		everybody(true)

		for id := range 20 {
			w.users.remove(webspaceUser(id))
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		everybody(true)
		for id := range 20 {
			w.users.add(webspaceUser(id), name(id))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		everybody(true)
		require.Zero(t, w.provider.Calls(providertest.OpDelete))

		for id := range 20 {
			w.users.remove(webspaceUser(id))
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		everybody(false)
		routes, err := w.provider.Routes(t.Context())
		require.NoError(t, err)
		require.Empty(t, routes)
	})
}

// panicking is a provider with a bug.
type panicking struct{ provider.Provider }

func (panicking) Routes(context.Context) ([]provider.Route, error) { panic("a bug") }

// A panic of a backend ends Run, and with it the program, instead of leaving a daemon that does nothing.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runtime := runtimetest.NewFake(nil)
		m, err := webspace.NewManager(runtime, newPeople(), "example.test", &webspace.Options{
			Provider: panicking{}, Gateway: "http://127.0.0.1:8081",
		})
		require.NoError(t, err)
		defer m.Close()
		require.PanicsWithValue(t, "a bug", func() { _ = m.Run(t.Context()) })
	})
}

// Who leaves in the middle of a restart does not have their webspace stopped.
func TestLeaveDuringRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		name := w.create(1000)
		endpoint, err := w.Activate(t.Context(), alice)
		require.NoError(t, err)
		endpoint.Release(nil)
		w.settled()
		calls := w.runtime.Calls("Restart")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Restart(ctx, 1000) }()
		for w.runtime.Calls("Restart") == calls {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, webspace.StatusRunning, w.instance(name).Status)
	})
}

// Whoever waits for a webspace that takes long to delete keeps nobody else from booting.
func TestSlotsWithoutLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deleting := make(chan struct{})
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			slowBoots(w, f)
			w.opts.Boots = 2
			f.Before = func(ctx context.Context, op, name string) error {
				if op == "Delete" && name == "ws-u1000" {
					<-deleting
				}
				return nil
			}
		})
		w.create(1000)
		w.create(1001)
		w.settled()
		deleted := make(chan error, 1)
		go func() { deleted <- w.Delete(t.Context(), 1000) }()
		time.Sleep(time.Minute)
		starts := make(chan error, 8)
		for range cap(starts) {
			go func() { starts <- w.Start(t.Context(), 1000) }()
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.EnsureStarted(ctx, 1001)
		require.NoError(t, err)
		close(deleting)
		require.NoError(t, <-deleted)
		for range cap(starts) {
			require.Error(t, <-starts)
		}
	})
}
