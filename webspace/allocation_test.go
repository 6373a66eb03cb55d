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
	"github.com/netsoc/webspaced/proxy"
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

// Two replicas can give one port away within the moment that it takes them to hear of each other's writes. It is forwarded to
// the older account's webspace by both, and the other member is told.
func TestPortOfTwoReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newPortWorld(t)
		opts := w.opts
		opts.Provider = nil
		other := &fakeForwarder{ports: map[int]proxy.Target{}, broken: map[int]error{}}
		opts.Forwarder = func(proxy.Activator) webspace.PortForwarder { return other }
		replica, err := webspace.NewManager(w.runtime, w.users, "example.test", &opts)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = replica.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		w.settled()

		_, err = w.AddPort(t.Context(), 1001, 50000, 22)
		require.NoError(t, err)
		_, err = replica.AddPort(t.Context(), 1000, 50000, 22)
		require.NoError(t, err)
		w.settled()
		want := map[int]proxy.Target{50000: {Webspace: "ws-u1000", Port: 22}}
		require.Equal(t, want, f.all())
		require.Equal(t, want, other.all())
		require.Contains(t, w.summary(1001).Problem, "port 50000 belongs to another webspace")
		require.Empty(t, w.summary(1000).Problem)

		// Once they have heard of it, nobody gets it.
		for _, m := range []*webspace.Manager{w.Manager, replica} {
			_, err = m.AddPort(t.Context(), 1001, 50000, 22)
			require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		}
	})
}
