package runtimetest

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// maxEvents are kept for one watcher; when it falls further behind they become one empty event.
const maxEvents = 1024

type fakeWatch struct {
	queue []webspace.Event
	wake  chan struct{}
	cut   bool
}

// Watch implements [webspace.Watcher].
func (f *Fake) Watch(ctx context.Context, notify func(webspace.Event)) error {
	return f.do(ctx, "Watch", "", func() error {
		w := &fakeWatch{queue: []webspace.Event{{}}, wake: make(chan struct{}, 1)}
		f.mu.Lock()
		f.watches[w] = true
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			delete(f.watches, w)
			f.mu.Unlock()
		}()
		for {
			f.mu.Lock()
			queue, cut := w.queue, w.cut
			w.queue = nil
			f.mu.Unlock()
			for _, event := range queue {
				if ctx.Err() == nil {
					notify(event)
				}
			}
			if cut {
				return fmt.Errorf("the stream of events was cut: %w", errdefs.ErrUnavailable)
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

func (w *fakeWatch) add(event webspace.Event) {
	if w.queue = append(w.queue, event); len(w.queue) > maxEvents {
		w.queue = []webspace.Event{{}}
	}
	w.signal()
}

func (w *fakeWatch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Emit tells the watchers of an event that nothing caused. No fault befalls it.
func (f *Fake) Emit(event webspace.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deliver(event)
}

// CutWatch loses every stream of events: each Watch that runs returns Unavailable.
func (f *Fake) CutWatch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		w.cut = true
		w.signal()
	}
}

// emit tells the watchers, through the faults.
func (f *Fake) emit(name string) {
	event, faults := webspace.Event{Instance: name}, f.opts.Events
	if f.random.Float64() < faults.Drop {
		return
	}
	if f.random.Float64() < faults.Double {
		f.deliver(event)
	}
	if f.random.Float64() < faults.Reorder && f.held == nil {
		f.held = &event
		return
	}
	f.deliver(event)
	if f.held != nil {
		f.deliver(*f.held)
		f.held = nil
	}
}

func (f *Fake) deliver(event webspace.Event) {
	for w := range f.watches {
		w.add(event)
	}
}
