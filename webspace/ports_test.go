package webspace_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// fakeForwarder remembers what it was asked for.
type fakeForwarder struct {
	mu     sync.Mutex
	ports  map[int]proxy.Target
	broken map[int]error
}

func (f *fakeForwarder) Forward(port int, t proxy.Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ports[port] = t
}

func (f *fakeForwarder) Unforward(port int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ports, port)
}

func (f *fakeForwarder) Status(port int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.ports[port]; !ok {
		return fmt.Errorf("port %d: %w", port, errdefs.ErrNotFound)
	}
	return f.broken[port]
}

func (f *fakeForwarder) all() map[int]proxy.Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.ports)
}

// newPortWorld is a world with a forwarder, and alice and bob in it.
func newPortWorld(t *testing.T) (*world, *fakeForwarder) {
	f := &fakeForwarder{ports: map[int]proxy.Target{}, broken: map[int]error{}}
	w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
		w.opts.Forwarder = func(proxy.Activator) webspace.PortForwarder { return f }
	})
	w.create(1000)
	w.create(1001)
	return w, f
}

func record(user int, ports string) []byte {
	return fmt.Appendf(nil, `{"user": %d, "ports": {%s}}`, user, ports)
}

type targets map[int]proxy.Target

func TestForwardsFollowTheSpecs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newPortWorld(t)
		alice, bob := proxy.Target{Webspace: "ws-u1000", Port: 22}, proxy.Target{Webspace: "ws-u1001", Port: 22}
		require := require.New(t)
		forwarded := func(want targets) {
			t.Helper()
			require.Equal(map[int]proxy.Target(want), f.all())
		}
		// What a member does has happened when it returns.
		_, err := w.AddPort(t.Context(), 1000, 50000, 22)
		require.NoError(err)
		forwarded(targets{50000: alice})
		_, err = w.AddPort(t.Context(), 1001, 50001, 22)
		require.NoError(err)
		forwarded(targets{50000: alice, 50001: bob})
		require.NoError(w.RemovePort(t.Context(), 1000, 50000))
		forwarded(targets{50001: bob})
		_, err = w.AddPort(t.Context(), 1000, 50000, 22)
		require.NoError(err)

		// Starts, stops and full reads change nothing.
		w.settled()
		require.NoError(w.Start(t.Context(), 1000))
		w.settled()
		require.NoError(w.Stop(t.Context(), 1000))
		w.settled()
		forwarded(targets{50000: alice, 50001: bob})

		// Edits behind our back are followed.
		require.NoError(w.runtime.SetRecord(t.Context(), "ws-u1000", record(1000, `"50000": 80`), ""))
		w.settled()
		forwarded(targets{50000: {Webspace: "ws-u1000", Port: 80}, 50001: bob})
		require.NoError(w.runtime.SetRecord(t.Context(), "ws-u1000", []byte("{broken"), ""))
		w.settled()
		forwarded(targets{50001: bob})
		require.NoError(w.runtime.SetRecord(t.Context(), "ws-u1000", record(1000, `"50000": 22, "22": 22`), ""))
		w.settled()
		forwarded(targets{50000: alice, 50001: bob})
		require.Contains(w.summary(1000).Problem, "port 22 is not between 49152 and 65535")

		// A new daemon knows them all after its first read.
		w.stop()
		clear(f.ports)
		w.start()
		w.settled()
		forwarded(targets{50000: alice, 50001: bob})

		require.NoError(w.Delete(t.Context(), 1000))
		forwarded(targets{50001: bob})
		require.NoError(w.runtime.Delete(t.Context(), "ws-u1001"))
		w.settled()
		forwarded(targets{})
	})
}

// Two records name one port, which only an edit behind our back brings about: the older account has it.
func TestForwardConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newPortWorld(t)
		alice, bob := proxy.Target{Webspace: "ws-u1000", Port: 1}, proxy.Target{Webspace: "ws-u1001", Port: 2}
		for range 3 {
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1001", record(1001, `"50000": 2`), ""))
			w.settled()
			require.Equal(t, map[int]proxy.Target{50000: bob}, f.all())
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1000", record(1000, `"50000": 1`), ""))
			w.settled()
			require.Equal(t, map[int]proxy.Target{50000: alice}, f.all())
			require.Contains(t, w.summary(1001).Problem, "port 50000 belongs to another webspace")
			require.Empty(t, w.summary(1000).Problem)
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1001", record(1001, ""), ""))
			w.settled()
			require.Equal(t, map[int]proxy.Target{50000: alice}, f.all())
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1001", record(1001, `"50000": 2`), ""))
			w.settled()
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1000", record(1000, ""), ""))
			w.settled()
		}
	})
}

// Members see which of their ports can not be opened.
func TestForwardProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newPortWorld(t)
		f.broken[50000] = errors.New("address already in use")
		_, err := w.AddPort(t.Context(), 1000, 50000, 22)
		require.NoError(t, err)
		_, err = w.AddPort(t.Context(), 1001, 50001, 22)
		require.NoError(t, err)
		w.settled()
		require.Equal(t, "port 50000 could not be opened: address already in use", w.summary(1000).Problem)
		require.Empty(t, w.summary(1001).Problem)
		f.mu.Lock()
		delete(f.broken, 50000)
		f.mu.Unlock()
		require.Empty(t, w.summary(1000).Problem)
	})
}

// Forwards wait for no route: a provider that is down does not keep members out of their webspaces.
func TestForwardsWithoutRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := newPortWorld(t)
		w.settled()
		w.provider.Hook(func(context.Context, providertest.Call) error { return errors.New("away") })
		require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u1000", record(1000, `"50000": 22`), ""))
		w.settled()
		require.Len(t, f.all(), 1)
	})
}

var _ webspace.PortForwarder = (*proxy.Forwarder)(nil)
