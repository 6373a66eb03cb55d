package webspace_test

import (
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

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestBootsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var booting, most atomic.Int32
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			populate(w, 20)
			w.opts.Boots = 3
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Start" {
					most.Store(max(most.Load(), booting.Add(1)))
				}
				return nil
			}
			f.After = func(_ context.Context, op, _ string, err error) error {
				if op == "Start" {
					booting.Add(-1)
				}
				return err
			}
			f.BootDelay = time.Second
		})
		fill(w, 20)
		w.settled()
		var waiters []<-chan error
		for n := range 20 {
			if n%4 == 0 {
				go func() { _ = w.Start(context.Background(), webspaceUser(n)) }()
				continue
			}
			waiters = append(waiters, w.first(t.Context(), proxy.Target{Webspace: "ws-u" + webspaceUser(n).String(), Port: 80}))
		}
		for _, waiter := range waiters {
			require.NoError(t, <-waiter)
		}
		require.EqualValues(t, 3, most.Load())
		synctest.Wait()
	})
}

func TestNothingListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var listens atomic.Bool
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
			w.opts.Probe = func(ctx context.Context, at netip.AddrPort) error {
				if !listens.Load() {
					return errors.New("connection refused")
				}
				return w.probe(ctx, at)
			}
		})
		name := w.create(1000)
		start := time.Now()
		err := <-w.first(t.Context(), alice)
		require.True(t, errdefs.IsFailedPrecondition(err))
		failure, ok := errors.AsType[*proxy.Failure](err)
		require.True(t, ok)
		require.Contains(t, failure.Reason, "port 80")
		require.InDelta(t, 3*time.Second, time.Since(start), float64(200*time.Millisecond))
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name), "the gateway can say so")

		start = time.Now()
		require.Error(t, <-w.first(t.Context(), alice))
		require.Less(t, time.Since(start), time.Second, "it has had its time")
		listens.Store(true)
		require.NoError(t, <-w.first(t.Context(), alice))
		w.settled()
		require.Equal(t, w.direct(name), w.backend(name))
		require.Equal(t, 1, w.runtime.Calls("Start"))
	})
}

func TestStartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Start" && broken.Load() {
					return errors.New("no space left on device")
				}
				return nil
			}
		})
		w.create(1000)
		for range 200 {
			err := <-w.first(t.Context(), alice)
			require.True(t, errdefs.IsUnavailable(err))
			failure, ok := errors.AsType[*proxy.Failure](err)
			require.True(t, ok)
			require.NotContains(t, failure.Reason, "device")
			require.Positive(t, failure.RetryAfter)
			time.Sleep(time.Second)
		}
		starts := w.runtime.Calls("Start") // after 0, 1, 2, 4, 8 ... s
		require.GreaterOrEqual(t, starts, 7)
		require.LessOrEqual(t, starts, 10)
		require.Contains(t, w.summary(1000).Problem, "could not be started")
		broken.Store(false)
		time.Sleep(5 * time.Minute)
		require.NoError(t, <-w.first(t.Context(), alice))
		require.Empty(t, w.summary(1000).Problem)
	})
}

// A guest that opens its port and powers off again is booted less and less often, while one that does so once, or is
// stopped by its user, is booted at once.
func TestShortLives(t *testing.T) {
	boots := func(w *world, seconds int, end func()) int {
		before := w.runtime.Calls("Start")
		for range seconds {
			if err := <-w.first(w.t.Context(), alice); err == nil {
				end()
			} else {
				failure, ok := errors.AsType[*proxy.Failure](err)
				require.True(w.t, ok, "%v", err)
				require.Positive(w.t, failure.RetryAfter)
				require.Contains(w.t, failure.Reason, "stops by itself")
			}
			time.Sleep(time.Second)
		}
		return w.runtime.Calls("Start") - before
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		off := func() { w.runtime.PowerOff(alice.Webspace) }
		few := boots(w, 1000, off)
		require.GreaterOrEqual(t, few, 12)
		require.LessOrEqual(t, few, 18) // after 0, 0, 0, 0, 0, 0, 1, 2, 4, 8 ... 300 s

		// One long life, and it is as good as new.
		time.Sleep(5 * time.Minute)
		require.NoError(t, <-w.first(t.Context(), alice))
		time.Sleep(time.Hour)
		off()
		w.settled()
		for range 4 {
			start := time.Now()
			require.NoError(t, <-w.first(t.Context(), alice))
			require.Less(t, time.Since(start), 500*time.Millisecond, "it may reboot a few times")
			off()
			w.settled()
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		require.Equal(t, 100, boots(w, 100, func() { require.NoError(t, w.Stop(t.Context(), 1000)) }))
	})
}

// Whatever happens to the instance while a request waits, the request gets an endpoint in the end.
func TestBootIsNoReasonToLoseAConnection(t *testing.T) {
	moved := netip.MustParseAddr("127.99.0.1")
	events := map[string]func(*world){
		"crash":          func(w *world) { w.runtime.Crash(alice.Webspace) },
		"power off":      func(w *world) { w.runtime.PowerOff(alice.Webspace) },
		"stop":           func(w *world) { _ = w.Stop(context.Background(), 1000) },
		"restart":        func(w *world) { _ = w.Restart(context.Background(), 1000) },
		"start":          func(w *world) { _ = w.Start(context.Background(), 1000) },
		"new address":    func(w *world) { w.runtime.SetAddress(alice.Webspace, moved) },
		"frozen":         func(w *world) { w.runtime.SetStatus(alice.Webspace, webspace.StatusFrozen) },
		"error":          func(w *world) { w.runtime.SetStatus(alice.Webspace, webspace.StatusError) },
		"stream is lost": func(w *world) { w.runtime.CutWatch(); w.runtime.Crash(alice.Webspace) },
	}
	for what, happen := range events {
		for _, after := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second, 2500 * time.Millisecond} {
			for _, deaf := range []bool{false, true} {
				t.Run(what+" after "+after.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var up atomic.Value // when it came up; its server takes a second more
						w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
							slowBoots(w, f)
							if deaf {
								f.Events.Drop = 1
							}
							f.After = func(_ context.Context, op, _ string, err error) error {
								if op == "Start" || op == "Restart" {
									up.Store(time.Now())
								}
								return err
							}
							w.opts.Probe = func(ctx context.Context, at netip.AddrPort) error {
								if since, ok := up.Load().(time.Time); !ok || time.Since(since) < time.Second {
									return errors.New("connection refused")
								}
								return w.probe(ctx, at)
							}
						})
						w.create(1000)
						var waiters []<-chan error
						for range 10 {
							waiters = append(waiters, w.first(t.Context(), alice))
						}
						time.Sleep(after)
						var wg sync.WaitGroup
						wg.Go(func() { happen(w) })
						for range 10 {
							waiters = append(waiters, w.first(t.Context(), alice))
						}
						start := time.Now()
						for _, waiter := range waiters {
							require.NoError(t, <-waiter)
						}
						require.Less(t, time.Since(start), 30*time.Second)
						wg.Wait()
						// And it is still there, or comes again.
						require.NoError(t, <-w.first(t.Context(), alice))
						w.settled()
						require.NoError(t, <-w.first(t.Context(), alice))
						w.settled()
						require.Equal(t, w.direct(alice.Webspace), w.backend(alice.Webspace))
					})
				})
			}
		}
	}
}

// A server that is restarted from inside has the time of a boot to come back.
func TestRebootFromInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			w.opts.Probe = func(ctx context.Context, at netip.AddrPort) error {
				if down.Load() {
					return errors.New("connection refused")
				}
				return w.probe(ctx, at)
			}
		})
		w.create(1000)
		endpoint, err := w.Activate(t.Context(), alice)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		down.Store(true)
		endpoint.Release(errors.New("connection refused"))
		waiter := w.first(t.Context(), alice)
		time.Sleep(2 * time.Second)
		down.Store(false)
		require.NoError(t, <-waiter)
	})
}

func TestNoAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		w.runtime.SetAddress(alice.Webspace, netip.Addr{})
		err := <-w.first(t.Context(), alice)
		require.True(t, errdefs.IsUnavailable(err))
		failure, ok := errors.AsType[*proxy.Failure](err)
		require.True(t, ok)
		require.Contains(t, failure.Reason, "address")
		waiter := w.first(t.Context(), alice)
		time.Sleep(time.Second)
		w.runtime.SetAddress(alice.Webspace, netip.MustParseAddr("127.99.0.1"))
		require.NoError(t, <-waiter)
	})
}
