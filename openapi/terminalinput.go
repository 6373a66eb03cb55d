package openapi

import (
	"context"
	"sync"
	"time"
)

const (
	maxInput     = 256 << 10        // bytes that wait for a command to read them
	inputTimeout = 30 * time.Second // for the command to make room when that many wait
)

// input is what the client types, until the command reads it. Some of it waits here, so that whoever reads from the client
// still sees it leave while the command does something else.
type input struct {
	mu      sync.Mutex
	waiting []byte
	err     error         // once there is no more
	changed chan struct{} // closed and made anew when one of the others changes
}

func newInput() *input { return &input{changed: make(chan struct{})} }

// change is called with the lock held.
func (i *input) change() {
	close(i.changed)
	i.changed = make(chan struct{})
}

// Read implements [io.Reader].
func (i *input) Read(p []byte) (int, error) {
	for {
		i.mu.Lock()
		if len(i.waiting) > 0 {
			n := copy(p, i.waiting)
			if i.waiting = i.waiting[n:]; len(i.waiting) == 0 {
				i.waiting = nil // lets the memory go
			}
			i.change()
			i.mu.Unlock()
			return n, nil
		}
		err, changed := i.err, i.changed
		i.mu.Unlock()
		if err != nil {
			return 0, err
		}
		<-changed
	}
}

// add takes more, and waits for room if need be. Nothing is taken any more when ctx or the input has ended, which is no
// error.
func (i *input) add(ctx context.Context, p []byte) error {
	var timeout <-chan time.Time
	for {
		i.mu.Lock()
		room := len(i.waiting)+len(p) <= maxInput
		if room && i.err == nil {
			i.waiting = append(i.waiting, p...)
			i.change()
		}
		done, changed := room || i.err != nil, i.changed
		i.mu.Unlock()
		if done {
			return nil
		}
		if timeout == nil {
			timer := time.NewTimer(inputTimeout)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-timeout:
			return unacceptable("the command has not read what was typed for %v", inputTimeout)
		}
	}
}

// end has Read return an error from now on.
func (i *input) end(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return
	}
	i.err, i.waiting = err, nil
	i.change()
}
