package webspace_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestProviderThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		bad, good := w.create(1000), w.create(1001)
		w.settled()
		w.provider.Hook(func(_ context.Context, call providertest.Call) error {
			if call.Route == bad {
				return errdefs.ErrUnavailable
			}
			return nil
		})
		require.NoError(t, w.Start(t.Context(), 1000))
		require.NoError(t, w.Start(t.Context(), 1001))
		w.settled()
		require.Equal(t, w.direct(good), w.backend(good))
		require.Equal(t, gatewayURL, w.backend(bad))
		puts := w.provider.Calls(providertest.OpPut)
		time.Sleep(time.Hour)
		require.Less(t, w.provider.Calls(providertest.OpPut)-puts, 300, "no back-off")

		w.provider.Hook(nil)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		require.Equal(t, w.direct(bad), w.backend(bad))
	})
}

// A write whose answer was lost may have been made: it must not be taken for one that was not.
func TestProviderAnswerLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		w.settled()
		lossy := &lossyProvider{Provider: w.provider}
		w.stop()
		w.opts.Provider = lossy
		w.start()
		w.settled()
		lossy.lose(true)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		require.Equal(t, w.direct(name), w.backend(name), "the write was made")
		lossy.lose(false)
		require.NoError(t, w.Stop(t.Context(), 1000))
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name))
	})
}

// lossyProvider makes changes, but says that it has not.
type lossyProvider struct {
	provider.Provider
	mu   sync.Mutex
	lost bool
}

func (p *lossyProvider) lose(lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = lost
}

func (p *lossyProvider) Apply(ctx context.Context, changes provider.Changes) error {
	err := p.Provider.Apply(ctx, changes)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost {
		return errdefs.ErrUnavailable
	}
	return err
}

func TestProviderAwayAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		w.stop()
		w.provider.Hook(func(context.Context, providertest.Call) error { return errdefs.ErrUnavailable })
		w.start()
		w.settled()
		target, err := w.Route("alice.example.test")
		require.NoError(t, err, "webspaces are there without routes")
		endpoint, err := w.Activate(t.Context(), target)
		require.NoError(t, err)
		endpoint.Release(nil)
		require.True(t, errdefs.IsUnavailable(w.Delete(t.Context(), 1000)), "its address would be freed while a route goes there")
		require.Equal(t, webspace.StatusRunning, w.instance(name).Status)

		w.provider.Hook(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, w.direct(name), w.backend(name))
		require.NoError(t, w.Delete(t.Context(), 1000))
		require.Empty(t, w.backend(name))
	})
}

func TestDirectoryAwayAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for id := range 100 {
			w.users.add(webspaceUser(id), fmt.Sprintf("user%d", id))
			w.create(webspaceUser(id))
		}
		require.NoError(t, w.Start(t.Context(), webspaceUser(7)))
		w.settled()
		before, err := w.provider.Routes(t.Context())
		require.NoError(t, err)
		w.stop()

		w.users.fail(errdefs.ErrUnavailable)
		w.users.asked = 0
		applied := w.provider.Calls(providertest.OpApply)
		w.start()
		w.settled()
		require.Equal(t, applied+1, w.provider.Calls(providertest.OpApply), "the first one, with nothing in it")
		require.Less(t, w.users.asked, 100, "a directory that is away is asked for every user")
		after, err := w.provider.Routes(t.Context())
		require.NoError(t, err)
		require.Equal(t, before, after)
		// What the routes say is enough to go on.
		target, err := w.Route("user5.example.test")
		require.NoError(t, err)
		_, err = w.Activate(t.Context(), target)
		require.NoError(t, err)
		require.Contains(t, w.summary(webspaceUser(6)).Problem, "look up user")

		w.users.fail(nil)
		w.users.add(webspaceUser(9), "renamed")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		route, _ := w.provider.Route("ws-u2009")
		require.Equal(t, hosts("renamed.example.test"), route.Hosts)
		require.Empty(t, w.summary(webspaceUser(6)).Problem)
	})
}

func TestMostRoutesGoOnlyAfterASecondLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		empty := 0
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.Resync = time.Minute })
		odd := &oddRuntime{Fake: w.runtime, empty: func() bool {
			mu.Lock()
			defer mu.Unlock()
			empty--
			return empty >= 0
		}}
		for id := range 20 {
			w.users.add(webspaceUser(id), fmt.Sprintf("user%d", id))
			w.create(webspaceUser(id))
		}
		w.settled()
		w.stop()
		m, err := webspace.NewManager(odd, w.users, "example.test", &w.opts)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = m.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		defer m.Close()
		w.settled()

		mu.Lock()
		empty = 1
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Zero(t, w.provider.Calls(providertest.OpDelete), "one odd listing")

		for id := range 20 {
			w.runtime.Remove("ws-u" + webspaceUser(id).String())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		routes, err := w.provider.Routes(t.Context())
		require.NoError(t, err)
		require.Empty(t, routes)
	})
}

// oddRuntime lists nothing now and then, and has no events.
type oddRuntime struct {
	*runtimetest.Fake
	empty func() bool
}

func (r *oddRuntime) List(ctx context.Context, prefix string) ([]webspace.Instance, error) {
	if r.empty() {
		return nil, nil
	}
	return r.Fake.List(ctx, prefix)
}

func (r *oddRuntime) Watch(ctx context.Context, _ func(webspace.Event)) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestRuntimeAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		var mu sync.Mutex
		err := errors.Join(away, errdefs.ErrUnavailable)
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(context.Context, string, string) error {
				mu.Lock()
				defer mu.Unlock()
				return err
			}
		})
		synctest.Wait()
		select {
		case <-w.Synced():
			t.Fatal("nothing could be read")
		default:
		}
		require.Error(t, w.Healthy(t.Context()))
		_, routeErr := w.Route("alice.example.test")
		require.True(t, errdefs.IsUnavailable(routeErr), "nobody knows yet whether there is such a site")
		start := time.Now()
		for what, call := range mutations(w.Manager) {
			require.True(t, errdefs.IsUnavailable(call(t.Context())), what)
		}
		require.Less(t, time.Since(start), 2*time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, w.Delete(ctx, 1000), context.DeadlineExceeded)

		mu.Lock()
		err = nil
		mu.Unlock()
		time.Sleep(31 * time.Second)
		<-w.Synced()
		require.NoError(t, w.Healthy(t.Context()))
		w.create(1000)
	})
}

func mutations(m *webspace.Manager) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"AddDomain": func(ctx context.Context) error { return m.AddDomain(ctx, 1000, "a.example.org") },
		"AddPort":   func(ctx context.Context) error { _, err := m.AddPort(ctx, 1000, 0, 22); return err },
		"Delete":    func(ctx context.Context) error { return m.Delete(ctx, 1000) },
		"Stop":      func(ctx context.Context) error { return m.Stop(ctx, 1000) },
		"Restart":   func(ctx context.Context) error { return m.Restart(ctx, 1000) },
		"Sync":      func(ctx context.Context) error { return m.Sync(ctx, 1000) },
	}
}

func TestEventStreamIsReopened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		require.NoError(t, w.Start(t.Context(), 1000))
		w.settled()
		for range 5 {
			w.runtime.CutWatch()
			synctest.Wait()
			w.runtime.Crash(name) // nobody hears
			w.settled()
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Equal(t, gatewayURL, w.backend(name))
			require.NoError(t, w.Start(t.Context(), 1000))
			w.settled()
		}
		require.True(t, slices.Contains([]int{6, 7}, w.runtime.Calls("Watch")))
	})
}
