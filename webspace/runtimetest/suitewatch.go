package runtimetest

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

var watchTests = []subtest{
	{"WatchBegins", testWatchBegins},
	{"WatchEnds", testWatchEnds},
	{"WatchChanges", testWatchChanges},
	{"WatchTwice", testWatchTwice},
}

// watcher is a Watch that runs.
type watcher struct {
	s      *suite
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	inside bool
	events []webspace.Event
}

// watch begins a Watch and waits until it is established.
func (s *suite) watch() *watcher {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	w := &watcher{s: s, cancel: cancel, done: make(chan error, 1)}
	go func() { w.done <- s.rt.(webspace.Watcher).Watch(ctx, w.notify) }()
	s.Cleanup(w.cancel)
	s.eventually("the first event", func() bool { return len(w.seen()) > 0 })
	return w
}

func (w *watcher) notify(event webspace.Event) {
	w.mu.Lock()
	if w.inside {
		w.s.Error("notify is called by two at a time")
	}
	w.inside = true
	w.events = append(w.events, event)
	w.mu.Unlock()
	runtime.Gosched() // lets another come in between, were there one
	w.mu.Lock()
	w.inside = false
	w.mu.Unlock()
}

func (w *watcher) seen() []webspace.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]webspace.Event(nil), w.events...)
}

// told requires a change to be told. An empty event tells of everything.
func (w *watcher) told(name, what string, change func()) {
	w.s.Helper()
	before := -1
	for before != len(w.seen()) { // events of what was done before may still come, and do not count
		before = len(w.seen())
		time.Sleep(50 * time.Millisecond)
	}
	change()
	w.s.eventually("an event of "+name+" when it is "+what, func() bool {
		for _, event := range w.seen()[before:] {
			if event.Instance == name || event.Instance == "" {
				return true
			}
		}
		return false
	})
}

// end cancels the Watch.
func (w *watcher) end() {
	w.s.Helper()
	w.cancel()
	err := w.s.soon("Watch that is cancelled", func() error { return <-w.done })
	require.ErrorIs(w.s, err, context.Canceled)
}

func testWatchBegins(s *suite) {
	name := s.create("{}")
	w := s.watch()
	require.Equal(s, webspace.Event{}, w.seen()[0], "the first event says that anything may have changed")
	s.setRecord(name, "new")
	w.end()
}

func testWatchEnds(s *suite) {
	w := s.watch()
	w.end()
	seen := len(w.seen())
	s.create("{}")
	require.Len(s, w.seen(), seen, "no event after the end")
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	err := s.soon("Watch", func() error { return s.rt.(webspace.Watcher).Watch(ctx, func(webspace.Event) {}) })
	require.ErrorIs(s, err, context.Canceled)
}

func testWatchChanges(s *suite) {
	w := s.watch()
	name := s.name()
	w.told(name, "created", func() {
		s.ok("Create", func() error {
			return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: s.h.Image})
		})
	})
	w.told(name, "given a record", func() { s.setRecord(name, "{}") })
	w.told(name, "started", func() { s.start(name) })
	w.told(name, "stopped", func() { s.stop(name) })
	w.told(name, "started again", func() { s.start(name) })
	w.told(name, "killed", func() { s.ok("Stop", func() error { return s.rt.Stop(s.ctx, name, 0) }) })
	w.told(name, "deleted", func() { s.delete(name) })
	w.end()
	for _, event := range w.seen() {
		if strings.HasPrefix(event.Instance, s.h.Prefix) {
			require.Equal(s, name, event.Instance, "an event of an instance that is not there")
		}
	}
}

func testWatchTwice(s *suite) {
	name := s.create("{}")
	one, two := s.watch(), s.watch()
	both := func(record string) {
		one.told(name, "changed", func() {
			two.told(name, "changed", func() { s.setRecord(name, record) })
		})
	}
	both("a")
	both("b")
	one.end()
	two.told(name, "changed", func() { s.setRecord(name, "c") })
	two.end()
}
