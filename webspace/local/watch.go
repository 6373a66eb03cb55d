//go:build linux

package local

import (
	"context"

	"github.com/netsoc/webspaced/webspace"
)

// maxEvents are kept for one watcher. When it falls further behind, one empty event stands for all of them.
const maxEvents = 1024

type watch struct {
	queue []webspace.Event // under Runtime.mu
	wake  chan struct{}
}

// Watch implements [webspace.Watcher]. When the runtime is closed, the stream is lost.
func (r *Runtime) Watch(ctx context.Context, notify func(webspace.Event)) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	w := &watch{queue: []webspace.Event{{}}, wake: make(chan struct{}, 1)}
	r.mu.Lock()
	r.watches[w] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.watches, w)
		r.mu.Unlock()
	}()
	for {
		r.mu.Lock()
		queue := w.queue
		w.queue = nil
		r.mu.Unlock()
		for _, event := range queue {
			if err := r.check(ctx); err != nil {
				return err
			}
			notify(event)
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return errClosed
		}
	}
}

// emit tells the watchers, without waiting for any.
func (r *Runtime) emit(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.watches {
		if w.queue = append(w.queue, webspace.Event{Instance: name}); len(w.queue) > maxEvents {
			w.queue = []webspace.Event{{}}
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}
