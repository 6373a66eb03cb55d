package webspace_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestPortsAreUniqueUnderConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ports, users, each = 32, 3, 12
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
			w.opts.Ports = webspace.PortRange{First: 50000, Last: 50000 + ports - 1}
		})
		for user := range users {
			w.create(1000 + identity.UserID(user))
		}
		var (
			mu   sync.Mutex
			had  = map[int]bool{}
			full int
			wg   sync.WaitGroup
		)
		for n := range users * each {
			wg.Go(func() {
				port, err := w.AddPort(t.Context(), 1000+identity.UserID(n%users), 0, 22)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					full++
					if !errdefs.IsResourceExhausted(err) {
						t.Error(err)
					}
					return
				}
				if had[port] {
					t.Errorf("port %d was given twice", port)
				}
				had[port] = true
			})
		}
		wg.Wait()
		require.Len(t, had, ports)
		require.Equal(t, users*each-ports, full)

		// What is given back can be had again, and nothing else.
		for user := range users {
			webspace, err := w.Get(t.Context(), 1000+identity.UserID(user))
			require.NoError(t, err)
			for port := range webspace.Ports {
				require.NoError(t, w.RemovePort(t.Context(), 1000+identity.UserID(user), port))
				again, err := w.AddPort(t.Context(), 1000, 0, 22)
				require.NoError(t, err)
				require.Equal(t, port, again)
				break
			}
		}
		_, err := w.AddPort(t.Context(), 1000, 0, 22)
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorContains(t, err, "no external port is free")
	})
}

func TestPortIsFreeAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		broken := false
		w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
			w.opts.Ports = webspace.PortRange{First: 50000, Last: 50000}
			f.Before = func(_ context.Context, op, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				if broken && op == "SetRecord" {
					return errors.New("away")
				}
				return nil
			}
		})
		w.create(1000)
		set := func(b bool) {
			mu.Lock()
			defer mu.Unlock()
			broken = b
		}
		set(true)
		for range 3 {
			_, err := w.AddPort(t.Context(), 1000, 0, 22)
			require.ErrorContains(t, err, "away")
		}
		set(false)
		port, err := w.AddPort(t.Context(), 1000, 0, 22)
		require.NoError(t, err)
		require.Equal(t, 50000, port)
	})
}

// A replica hears of another's writes only after a moment, and gives no port away that is taken by then.
func TestPortOfTwoReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ports = 16
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
			w.opts.Ports = webspace.PortRange{First: 50000, Last: 50000 + ports - 1}
		})
		w.create(1000)
		w.create(1001)
		opts := w.opts
		opts.Provider = nil
		replica, err := webspace.NewManager(deaf{w.runtime}, w.users, "example.test", &opts)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var running, adding sync.WaitGroup
		running.Go(func() { _ = replica.Run(ctx) })
		defer running.Wait()
		defer cancel()

		_, err = w.AddPort(t.Context(), 1001, 50000, 22)
		require.NoError(t, err)
		_, err = replica.AddPort(t.Context(), 1000, 50000, 22)
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		_, err = replica.AddPort(t.Context(), 1000, 50001, 22)
		require.NoError(t, err)
		require.Empty(t, w.summary(1001).Problem)

		// Both at once: of one port at most one has it, and a random one is somebody's alone.
		var mu sync.Mutex
		had := map[int]int{50000: 1, 50001: 1}
		for n := range 4 {
			for user, m := range map[identity.UserID]*webspace.Manager{1000: replica, 1001: w.Manager} {
				adding.Go(func() {
					for _, external := range []int{50008 + n, 0} {
						port, err := m.AddPort(t.Context(), user, external, 22)
						if err != nil {
							if !errdefs.IsAlreadyExists(err) && !errdefs.IsResourceExhausted(err) {
								t.Error(err)
							}
							continue
						}
						mu.Lock()
						had[port]++
						mu.Unlock()
					}
				})
			}
		}
		adding.Wait()
		for port, times := range had {
			require.Equal(t, 1, times, "port %d", port)
		}
		stored := map[int]int{}
		for _, user := range []identity.UserID{1000, 1001} {
			webspace, err := w.Get(t.Context(), user)
			require.NoError(t, err)
			for port := range webspace.Ports {
				stored[port]++
			}
		}
		require.Equal(t, had, stored)
	})
}

// deaf hears of nothing after the first listing.
type deaf struct{ *runtimetest.Fake }

func (deaf) Watch(ctx context.Context, _ func(webspace.Event)) error {
	<-ctx.Done()
	return ctx.Err()
}
