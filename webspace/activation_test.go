package webspace_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var alice = proxy.Target{Webspace: "ws-u1000", Port: 80}

// first activates a target in another goroutine.
func (w *world) first(ctx context.Context, target proxy.Target) <-chan error {
	done := make(chan error, 1)
	go func() {
		endpoint, err := w.Activate(ctx, target)
		if err == nil {
			endpoint.Release(nil)
		}
		done <- err
	}()
	return done
}

func slowBoots(_ *world, f *runtimetest.FakeOptions) {
	f.BootDelay, f.StopDelay = 2*time.Second, time.Second
}

func TestOneStartForManyWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		w.create(1000)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		left := w.first(impatient, alice) // it is the one that starts the flight
		synctest.Wait()
		var waiters []<-chan error
		for range 1000 {
			waiters = append(waiters, w.first(t.Context(), alice))
		}
		require.ErrorIs(t, <-left, context.DeadlineExceeded)
		start := time.Now()
		for _, waiter := range waiters {
			require.NoError(t, <-waiter)
		}
		require.Less(t, time.Since(start), 1100*time.Millisecond, "startupDelay is a bound")
		require.Equal(t, 1, w.runtime.Calls("Start"))
		endpoint, ok := w.Ready(alice)
		require.True(t, ok)
		require.Equal(t, w.instance(alice.Webspace).Address, endpoint.Address.Addr())
		endpoint.Release(nil)
		endpoint.Release(nil)
	})
}

func TestStopDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		name := w.create(1000)
		under, err := w.Activate(t.Context(), alice)
		require.NoError(t, err)
		w.settled()
		stopped := make(chan error)
		go func() { stopped <- w.Stop(context.Background(), 1000) }()
		time.Sleep(5 * time.Second) // 3 s for the reverse proxy, then it waits for the request
		require.Equal(t, webspace.StatusRunning, w.instance(name).Status)
		_, ok := w.Ready(alice)
		require.False(t, ok)
		newcomer := w.first(t.Context(), alice)
		time.Sleep(time.Second)
		under.Release(nil)
		require.NoError(t, <-stopped)
		require.NoError(t, <-newcomer)
		require.Equal(t, 2, w.runtime.Calls("Start"))

		// A request that does not end holds a stop up for so long only.
		under, err = w.Activate(t.Context(), alice)
		require.NoError(t, err)
		w.settled()
		start := time.Now()
		require.NoError(t, w.Stop(t.Context(), 1000))
		require.InDelta(t, 9*time.Second, time.Since(start), float64(time.Second))
		under.Release(nil)
		require.NoError(t, <-w.first(t.Context(), alice))
		w.settled()
		require.NoError(t, w.Stop(t.Context(), 1000), "leases of a drain that is past do no harm")
	})
}

func TestStopThatIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		name := w.create(1000)
		under, err := w.Activate(t.Context(), alice)
		require.NoError(t, err)
		w.settled()
		for what, end := range map[string]func(context.Context) error{
			"stop":   func(ctx context.Context) error { return w.Stop(ctx, 1000) },
			"delete": func(ctx context.Context) error { return w.Delete(ctx, 1000) },
		} {
			for _, after := range []time.Duration{time.Second, 4 * time.Second} { // while it settles, while it drains
				ctx, cancel := context.WithTimeout(t.Context(), after)
				require.ErrorIs(t, end(ctx), context.DeadlineExceeded, what)
				cancel()
				require.Equal(t, webspace.StatusRunning, w.instance(name).Status)
				require.NoError(t, <-w.first(t.Context(), alice))
				w.settled()
				require.Equal(t, w.direct(name), w.backend(name), what)
			}
		}
		under.Release(nil)
	})
}

func TestDeletedWhileWaitedFor(t *testing.T) {
	for _, after := range []time.Duration{500 * time.Millisecond, 2500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
				slowBoots(w, f)
				w.opts.Settle = -1
				w.opts.Probe = func(context.Context, netip.AddrPort) error { return errors.New("connection refused") }
			})
			w.create(1000)
			waiter := w.first(t.Context(), alice)
			time.Sleep(after)
			w.runtime.Remove(alice.Webspace)
			require.True(t, errdefs.IsNotFound(<-waiter))
			_, err := w.Activate(t.Context(), alice)
			require.True(t, errdefs.IsNotFound(err))
			w.settled()
			require.Empty(t, w.backend(alice.Webspace))

			w.create(1000)
			waiter = w.first(t.Context(), alice)
			time.Sleep(after)
			require.NoError(t, w.Delete(t.Context(), 1000))
			require.True(t, errdefs.IsNotFound(<-waiter))
		})
	}
}

func TestLostEventsAndAFailedDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			slowBoots(w, f)
			f.Events.Drop = 1
		})
		name := w.create(1000)
		endpoint, err := w.Activate(t.Context(), alice)
		require.NoError(t, err)
		w.runtime.Crash(name)
		again, ok := w.Ready(alice)
		require.True(t, ok, "nobody knows")
		again.Release(errors.New("connection refused"))
		_, ok = w.Ready(alice)
		require.False(t, ok)
		require.NoError(t, <-w.first(t.Context(), alice))
		require.Equal(t, 2, w.runtime.Calls("Start"))
		endpoint.Release(nil)
	})
}

func TestCloseEndsActivations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) { f.BootDelay = time.Minute })
		w.create(1000)
		waiter := w.first(t.Context(), alice)
		time.Sleep(time.Second)
		require.NoError(t, w.Close())
		err := <-waiter
		require.True(t, errdefs.IsUnavailable(err))
		require.NotErrorIs(t, err, context.Canceled, "it is not the caller who left")
		require.NoError(t, w.Close())
		_, err = w.Activate(t.Context(), alice)
		require.True(t, errdefs.IsUnavailable(err))
	})
}

func TestEnsureStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		_, err := w.EnsureStarted(t.Context(), 1000)
		require.True(t, errdefs.IsNotFound(err))
		w.create(1000)
		at, err := w.EnsureStarted(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, netip.AddrPortFrom(w.instance(alice.Webspace).Address, 80), at)
		_, err = w.Activate(t.Context(), proxy.Target{Webspace: alice.Webspace})
		require.True(t, errdefs.IsInvalidArgument(err))
	})
}

// Readings that something else makes out of date all the time come to an end all the same.
func TestActivationUnderAFloodOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.BootDelay = time.Second
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Get" {
					time.Sleep(10 * time.Millisecond)
				}
				return nil
			}
		})
		w.create(1000)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = w.SetConfig(ctx, 1000, webspace.ConfigChange{})
				}
			})
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				w.runtime.Emit(webspace.Event{Instance: alice.Webspace})
				w.runtime.Emit(webspace.Event{})
				time.Sleep(time.Millisecond)
			}
		})
		for range 20 {
			start := time.Now()
			require.NoError(t, <-w.first(t.Context(), alice))
			require.Less(t, time.Since(start), 3*time.Second)
			require.NoError(t, w.Stop(t.Context(), 1000))
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
		wg.Wait()
	})
}
