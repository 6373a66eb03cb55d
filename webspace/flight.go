package webspace

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/errdefs"
)

// flights runs one function a key at a time, for any number of callers. A flight is detached from the caller that
// started it: it runs on the group's own context, and whoever asked may leave. An ended flight is forgotten, so that
// after a failure the next caller starts another.
//
// (golang.org/x/sync/singleflight does the joining, but nobody can cancel or await its goroutines.)
type flights[K comparable, V any] struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	flying map[K]*flight[V]
}

type flight[V any] struct {
	landed chan struct{} // closed when value and err are set: all waiters wake at once
	value  V
	err    error
}

func newFlights[K comparable, V any]() *flights[K, V] {
	ctx, cancel := context.WithCancel(context.Background())
	return &flights[K, V]{ctx: ctx, cancel: cancel, flying: make(map[K]*flight[V])}
}

// do joins the flight of key, or starts one with fn, and waits for it or for ctx.
func (g *flights[K, V]) do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, error) {
	f, err := g.join(key, fn)
	if err != nil {
		var zero V
		return zero, err
	}
	select {
	case <-f.landed:
		return f.value, f.err
	case <-ctx.Done():
		var zero V
		return zero, ctx.Err()
	}
}

// join is do without the wait.
func (g *flights[K, V]) join(key K, fn func(context.Context) (V, error)) (*flight[V], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flying[key]; f != nil {
		return f, nil
	}
	if g.closed {
		return nil, errors.Join(errClosed, errdefs.ErrUnavailable)
	}
	f := &flight[V]{landed: make(chan struct{})}
	g.flying[key] = f
	g.wg.Go(func() {
		f.value, f.err = fn(g.ctx)
		g.mu.Lock()
		delete(g.flying, key)
		g.mu.Unlock()
		close(f.landed)
	})
	return f, nil
}

var errClosed = errors.New("the manager is closed")

// close cancels all flights and waits for them.
func (g *flights[K, V]) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
}
