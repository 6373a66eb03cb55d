package webspace

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// queue holds the names of webspaces that have to be reconciled. A name is in it once, however often it is added; while
// it is being worked on it can be added again and is handed out only afterwards. That bounds the queue by the number of
// webspaces, and the work on each by one at a time.
//
// (client-go's workqueue does this and more, but the core imports no Kubernetes package.)
type queue struct {
	interval time.Duration // shortest time between two hand-outs of one name
	base     time.Duration // first back-off after a failure; doubles up to limit
	limit    time.Duration

	mu      sync.Mutex
	items   map[string]*item
	waiting itemHeap
	wake    chan struct{} // closed and replaced when an earlier item may be due
}

type item struct {
	name     string
	due      time.Time
	last     time.Time // when it was handed out last
	failures int
	active   bool // being worked on
	again    bool // added while active
	idle     bool // done, and kept only to remember last until interval has passed
	index    int  // in the heap; -1 if not in it
}

func newQueue(interval, base, limit time.Duration) *queue {
	return &queue{interval: interval, base: base, limit: limit, items: make(map[string]*item), wake: make(chan struct{})}
}

// add marks a name as dirty. It is due at once, or interval after it was handed out last.
func (q *queue) add(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[name]
	if it == nil {
		it = &item{name: name, index: -1}
		q.items[name] = it
	}
	if it.active {
		it.again = true
		return
	}
	// What waits already keeps its time: neither a failing name nor a guest that causes events all the time gains
	// anything by being added again.
	it.idle = false
	if it.index < 0 {
		q.schedule(it, time.Now())
	}
}

func (q *queue) schedule(it *item, due time.Time) {
	it.due = due
	heap.Push(&q.waiting, it)
	if it.index == 0 { // else whoever waits does so for one that is due before
		close(q.wake)
		q.wake = make(chan struct{})
	}
}

// next returns a due name and how long it has been due; the caller gives it back through done. It waits until there is one
// or ctx ends.
func (q *queue) next(ctx context.Context) (name string, waited time.Duration, err error) {
	for {
		q.mu.Lock()
		now := time.Now()
		wake := q.wake
		var timer <-chan time.Time
		if len(q.waiting) > 0 {
			it := q.waiting[0]
			if !it.due.After(now) {
				heap.Pop(&q.waiting)
				if it.idle {
					delete(q.items, it.name)
					q.mu.Unlock()
					continue
				}
				it.active, it.last = true, now
				q.mu.Unlock()
				return it.name, now.Sub(it.due), nil
			}
			timer = time.After(it.due.Sub(now))
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", 0, ctx.Err()
		case <-wake:
		case <-timer:
		}
	}
}

// work does one due name after the other until ctx ends. do reports whether it succeeded.
func (q *queue) work(ctx context.Context, do func(name string, waited time.Duration) bool) {
	for {
		name, waited, err := q.next(ctx)
		if err != nil {
			return
		}
		q.done(name, !do(name, waited))
	}
}

// done ends the work on a name. After a failure it comes back by itself, later each time.
func (q *queue) done(name string, failed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[name]
	it.active = false
	switch {
	case failed:
		delay := min(q.base<<min(it.failures, 30), q.limit)
		it.failures++
		// Jitter, so that what failed together does not come back together.
		q.schedule(it, time.Now().Add(delay/2+rand.N(delay/2+1)))
	default:
		it.failures = 0
		it.idle = !it.again
		q.schedule(it, it.last.Add(q.interval))
	}
	it.again = false
}

// len is the number of names that are waiting or being worked on.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, it := range q.items {
		if !it.idle {
			n++
		}
	}
	return n
}

type itemHeap []*item

func (h itemHeap) Len() int           { return len(h) }
func (h itemHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h itemHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *itemHeap) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

func (h *itemHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	it.index = -1
	return it
}
