package webspace_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

const gatewayURL = "http://gateway:8081"

// world is a Manager with all that is around it: a runtime, a provider and users, all in memory.
type world struct {
	*webspace.Manager
	t        testing.TB
	opts     webspace.Options
	runtime  *runtimetest.Fake
	wrap     func(*runtimetest.Fake) webspace.Runtime // what the Manager gets in its place; nil: itself
	provider *providertest.Fake
	users    *people
	// directory is asked instead of users, if it is there.
	directory identity.Directory
	stop      func()
}

// newWorld starts a Manager. change may alter its options, the fake runtime's, and which users there are.
func newWorld(t testing.TB, change func(w *world, f *runtimetest.FakeOptions)) *world {
	w := &world{
		t: t, provider: providertest.NewFake(), users: newPeople(),
		opts: webspace.Options{
			Gateway: gatewayURL,
			Logger:  slog.New(slog.DiscardHandler),
			VerifyDomain: func(_ context.Context, _ identity.UserID, domain string) error {
				if strings.HasPrefix(domain, "unproven.") {
					return fmt.Errorf("no proof: %w", errdefs.ErrInvalidArgument)
				}
				return nil
			},
		},
	}
	w.opts.Provider = w.provider
	w.opts.Probe = func(ctx context.Context, at netip.AddrPort) error { return w.probe(ctx, at) }
	var f runtimetest.FakeOptions
	if change != nil {
		change(w, &f)
	}
	w.runtime = runtimetest.NewFake(&f)
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start makes the Manager and runs it, as a new daemon would.
func (w *world) start() {
	var runtime webspace.Runtime = w.runtime
	if w.wrap != nil {
		runtime = w.wrap(w.runtime)
	}
	directory := w.directory
	if directory == nil {
		directory = w.users
	}
	m, err := webspace.NewManager(runtime, directory, "example.test", &w.opts)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	w.Manager = m
	w.stop = sync.OnceFunc(func() {
		cancel()
		_ = m.Close()
		wg.Wait()
	})
}

// probe finds an endpoint accepting when a running instance has its address.
func (w *world) probe(ctx context.Context, at netip.AddrPort) error {
	instances, err := w.runtime.List(ctx, "")
	if err != nil {
		return err
	}
	for _, i := range instances {
		if i.Status == webspace.StatusRunning && i.Address == at.Addr() {
			return nil
		}
	}
	return errors.New("connection refused")
}

func (w *world) user(id identity.UserID) identity.User {
	u, err := w.users.ByID(context.Background(), id)
	require.NoError(w.t, err)
	return u
}

// create makes the webspace of a user and returns the name of its instance.
func (w *world) create(id identity.UserID) string {
	_, err := w.Create(w.t.Context(), w.user(id), webspace.CreateRequest{Image: "hello"})
	require.NoError(w.t, err)
	return fmt.Sprintf("ws-u%d", id)
}

func (w *world) instance(name string) webspace.Instance {
	i, err := w.runtime.Get(context.Background(), name)
	require.NoError(w.t, err)
	return i
}

func (w *world) summary(id identity.UserID) webspace.Summary {
	for _, s := range w.Summaries() {
		if s.User == id {
			return s
		}
	}
	return webspace.Summary{}
}

// backend returns where a route goes, empty if there is none.
func (w *world) backend(name string) string {
	route, _ := w.provider.Route(name)
	return route.Backend
}

// direct is the backend of a route straight to an instance.
func (w *world) direct(name string) string {
	return "http://" + netip.AddrPortFrom(w.instance(name).Address, 80).String()
}

// settled waits until nothing happens any more for a while. For worlds in a bubble.
func (w *world) settled() {
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

// people is a directory of users that can be changed and can fail.
type people struct {
	mu    sync.Mutex
	users map[identity.UserID]identity.User
	err   error
	asked int
}

// newPeople knows alice (1000), bob (1001) and carol (1002).
func newPeople() *people {
	p := &people{users: make(map[identity.UserID]identity.User)}
	p.add(1000, "alice")
	p.add(1001, "bob")
	p.add(1002, "carol")
	return p
}

func (p *people) add(id identity.UserID, name string) identity.User {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users[id] = identity.User{ID: id, Username: name}
	return p.users[id]
}

func (p *people) remove(id identity.UserID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.users, id)
}

// fail makes all look-ups fail, until it is called with nil.
func (p *people) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *people) look(match func(identity.User) bool) (identity.User, error) {
	for _, u := range p.users {
		if match(u) {
			return u, nil
		}
	}
	return identity.User{}, fmt.Errorf("no such user: %w", errdefs.ErrNotFound)
}

func (p *people) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.err != nil {
		return identity.User{}, p.err
	}
	if u, ok := p.users[id]; ok {
		return u, ctx.Err()
	}
	return identity.User{}, fmt.Errorf("no user %d: %w", id, errdefs.ErrNotFound)
}

func (p *people) ByUsername(_ context.Context, name string) (identity.User, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return identity.User{}, p.err
	}
	return p.look(func(u identity.User) bool { return u.Username == name })
}

func hosts(names ...string) (list []provider.Host) {
	for _, name := range names {
		host, err := provider.ParseHost(name)
		if err != nil {
			panic(err)
		}
		list = append(list, host)
	}
	return list
}
