package webspace

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// due returns what the queue hands out within a time.
func due(t *testing.T, q *queue, within time.Duration) string {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	name, _, err := q.next(ctx)
	if err != nil {
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return ""
	}
	return name
}

func TestQueueHandsOutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(100*time.Millisecond, time.Second, time.Minute)
		q.add("a")
		q.add("a")
		require.Equal(t, "a", due(t, q, 0+time.Millisecond))
		require.Empty(t, due(t, q, time.Hour))
		q.add("a") // while it is being worked on
		q.add("a")
		require.Empty(t, due(t, q, time.Hour))
		q.done("a", false)
		require.Equal(t, "a", due(t, q, time.Millisecond))
		q.done("a", false)
		require.Empty(t, due(t, q, time.Hour))
		require.Empty(t, q.items, "it grows")
		require.Empty(t, q.waiting)
	})
}

func TestQueueInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(100*time.Millisecond, time.Second, time.Minute)
		q.add("a")
		require.Equal(t, "a", due(t, q, time.Millisecond))
		q.done("a", false)
		q.add("a")
		require.Equal(t, 1, q.len())
		q.add("b")
		require.Equal(t, "b", due(t, q, time.Millisecond), "one name does not hold up another")
		q.done("b", false)
		start := time.Now()
		require.Equal(t, "a", due(t, q, time.Second))
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		q.add("a")
		q.done("a", false)
		require.Equal(t, "a", due(t, q, time.Second))
		require.Equal(t, 200*time.Millisecond, time.Since(start))
	})
}

func TestQueueBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(100*time.Millisecond, time.Second, time.Minute)
		q.add("a")
		require.Equal(t, "a", due(t, q, time.Millisecond))
		for failures := range 40 {
			q.done("a", true)
			q.add("a") // gains nothing
			full := min(time.Second<<min(failures, 10), time.Minute)
			start := time.Now()
			require.Equal(t, "a", due(t, q, time.Hour))
			require.GreaterOrEqual(t, time.Since(start), full/2)
			require.LessOrEqual(t, time.Since(start), full)
		}
		q.done("a", false)
		require.Empty(t, due(t, q, time.Hour))
		q.add("a")
		require.Equal(t, "a", due(t, q, time.Millisecond))
		q.done("a", true)
		require.Equal(t, "a", due(t, q, time.Second), "a success starts it anew")
	})
}

func TestQueueWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(time.Millisecond, time.Millisecond, 10*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		working, last := map[string]bool{}, map[string]time.Time{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				q.work(ctx, func(name string, _ time.Duration) bool {
					mu.Lock()
					if working[name] {
						t.Errorf("%s is worked on twice", name)
					}
					working[name], last[name] = true, time.Now()
					mu.Unlock()
					time.Sleep(rand.N(3 * time.Millisecond))
					mu.Lock()
					defer mu.Unlock()
					working[name] = false
					return rand.N(3) > 0
				})
			})
		}
		added := map[string]time.Time{}
		for range 5000 {
			name := fmt.Sprint("w", rand.N(20))
			mu.Lock()
			added[name] = time.Now()
			mu.Unlock()
			q.add(name)
			time.Sleep(rand.N(300 * time.Microsecond))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for name, at := range added {
			require.False(t, last[name].Before(at), "%s was not handed out after it was added", name)
		}
		require.Zero(t, q.len())
		require.Empty(t, q.items)
		cancel()
		wg.Wait()
	})
}
