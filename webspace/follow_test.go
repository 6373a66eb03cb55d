package webspace_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// watcher collects what a follower is told.
type watcher struct {
	mu      sync.Mutex
	notices []webspace.Notice
	done    chan struct{}
	err     error // once done
}

func (w *world) follow(ctx context.Context, id identity.UserID) *watcher {
	f := &watcher{done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.err = w.Follow(ctx, id, func(n webspace.Notice) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.notices = append(f.notices, n)
		})
	}()
	time.Sleep(time.Second) // for the first notices
	synctest.Wait()
	return f
}

// told returns what kinds of notices there were since it was asked last.
func (f *watcher) told() (kinds []webspace.NoticeKind) {
	time.Sleep(10 * time.Second)
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.notices {
		kinds = append(kinds, n.Kind)
	}
	f.notices = nil
	return kinds
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		require.True(t, errdefs.IsNotFound(w.Follow(t.Context(), 1000, nil)))
		w.create(1000)
		w.settled()
		ctx, cancel := context.WithCancel(t.Context())
		f := w.follow(ctx, 1000)
		kinds := func(k ...webspace.NoticeKind) {
			t.Helper()
			require.Equal(t, k, f.told())
		}
		kinds("stopped")
		require.NoError(t, <-w.first(t.Context(), alice))
		kinds("queued", "starting", "address", "probing", "ready", "route")
		require.NoError(t, w.Stop(t.Context(), 1000))
		kinds("stopping", "route", "stopped")
		require.NoError(t, w.Start(t.Context(), 1000))
		kinds("queued", "starting", "address", "probing", "ready", "route")
		require.NoError(t, w.Restart(t.Context(), 1000))
		got := f.told()
		require.Equal(t, webspace.NoticeStopping, got[0])
		require.Contains(t, got, webspace.NoticeAddress)
		require.Contains(t, got, webspace.NoticeReady)
		require.Equal(t, webspace.NoticeRoute, got[1], "before it stops")

		delay := 5 * time.Second
		require.NoError(t, second(w.SetConfig(t.Context(), 1000, webspace.ConfigChange{StartupDelay: &delay})))
		kinds("config")
		require.NoError(t, w.AddDomain(t.Context(), 1000, "alice.example.org"))
		kinds("domains", "route")
		require.NoError(t, second(w.AddPort(t.Context(), 1000, 0, 22)))
		kinds("ports")

		late := w.follow(t.Context(), 1000)
		require.Equal(t, []webspace.NoticeKind{"ready"}, late.told(), "how it stands")
		cancel()
		<-f.done
		require.ErrorIs(t, f.err, context.Canceled)
		require.NoError(t, w.Delete(t.Context(), 1000))
		<-late.done
		require.True(t, errdefs.IsNotFound(late.err))
		require.Equal(t, webspace.NoticeDeleted, late.notices[len(late.notices)-1].Kind)
		require.NotZero(t, late.notices[0].Time)
	})
}

// What happens behind our back is told as well.
func TestFollowWhatOthersDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		name := w.create(1000)
		w.settled()
		f := w.follow(t.Context(), 1000)
		f.told()
		require.NoError(t, w.runtime.Start(t.Context(), name))
		require.Equal(t, []webspace.NoticeKind{"address", "probing", "ready", "route"}, f.told())
		require.NoError(t, w.runtime.Stop(t.Context(), name, 0))
		require.Equal(t, []webspace.NoticeKind{"stopped", "route"}, f.told())
		good := w.instance(name).Record
		require.NoError(t, w.runtime.SetRecord(t.Context(), name, []byte("{"), ""))
		require.Contains(t, f.told(), webspace.NoticeProblem)
		require.NoError(t, w.runtime.SetRecord(t.Context(), name, good, ""))
		time.Sleep(10 * time.Second)
		f.mu.Lock()
		last := f.notices[slices.IndexFunc(f.notices, func(n webspace.Notice) bool { return n.Kind == webspace.NoticeProblem })]
		f.mu.Unlock()
		require.Empty(t, last.Message, "it is over")
		require.NoError(t, w.runtime.Delete(t.Context(), name))
		<-f.done
		require.True(t, errdefs.IsNotFound(f.err))
	})
}

func TestFollowFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "Start" && broken.Load() {
					return errors.New("no space left on device")
				}
				return nil
			}
		})
		w.create(1000)
		broken.Store(true)
		f := w.follow(t.Context(), 1000)
		f.told()
		require.Error(t, <-w.first(t.Context(), alice))
		time.Sleep(time.Second)
		f.mu.Lock()
		var failed, problem string
		for _, n := range f.notices {
			switch n.Kind {
			case webspace.NoticeFailed:
				failed = n.Message
			case webspace.NoticeProblem:
				problem = n.Message
			}
		}
		f.mu.Unlock()
		require.Equal(t, "This webspace could not be started.", failed)
		require.Contains(t, problem, "no space left")
		f.told()
		require.Error(t, w.Start(t.Context(), 1000))
		require.Contains(t, f.told(), webspace.NoticeFailed)
		broken.Store(false)
		require.NoError(t, <-w.first(t.Context(), alice))
		require.Contains(t, f.told(), webspace.NoticeProblem, "it is over")
	})
}

// A follower that takes no notices holds up nobody, and gets the latest ones.
func TestSlowFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.create(1000)
		w.settled()
		stuck, told := make(chan struct{}), []webspace.Notice(nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = w.Follow(t.Context(), 1000, func(n webspace.Notice) {
				<-stuck
				told = append(told, n)
			})
		})
		time.Sleep(time.Second)
		for i := range 100 {
			delay := time.Duration(i+1) * 100 * time.Millisecond
			require.NoError(t, second(w.SetConfig(t.Context(), 1000, webspace.ConfigChange{StartupDelay: &delay})))
			require.NoError(t, second(w.AddPort(t.Context(), 1000, 50000, 22)))
			require.NoError(t, w.RemovePort(t.Context(), 1000, 50000))
		}
		require.NoError(t, w.Delete(t.Context(), 1000))
		close(stuck)
		wg.Wait()
		require.LessOrEqual(t, len(told), 66)
		require.Equal(t, webspace.NoticeDeleted, told[len(told)-1].Kind)
	})
}

func TestFollowersLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		w.create(1000)
		var wg sync.WaitGroup
		for n := range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*10*time.Millisecond)
				defer cancel()
				_ = w.Follow(ctx, 1000, func(webspace.Notice) {})
			})
		}
		require.NoError(t, <-w.first(t.Context(), alice))
		wg.Wait()
	})
}
