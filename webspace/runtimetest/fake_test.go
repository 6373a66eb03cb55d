package runtimetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var hello = webspace.CreateOptions{Image: "hello"}

func TestFakeServesWhileItRuns(t *testing.T) {
	f := runtimetest.NewFake(&runtimetest.FakeOptions{Port: 18080, Serve: func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "I am ", name) })
	}})
	defer f.Close()
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "a", hello))
	require.NoError(t, f.Start(ctx, "a"))
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	get := func() (string, error) {
		i, err := f.Get(ctx, "a")
		require.NoError(t, err)
		response, err := client.Get("http://" + netip.AddrPortFrom(i.Address, 18080).String())
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
	body, err := get()
	require.NoError(t, err)
	require.Equal(t, "I am a", body)

	require.True(t, f.SetAddress("a", netip.MustParseAddr("127.63.1.2")))
	body, err = get()
	require.NoError(t, err)
	require.Equal(t, "I am a", body)

	require.True(t, f.Crash("a"))
	_, err = get()
	require.Error(t, err)
	require.NoError(t, f.Start(ctx, "a"))
	_, err = get()
	require.NoError(t, err)
}

func TestFakeBootTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runtimetest.NewFake(&runtimetest.FakeOptions{BootDelay: time.Minute, StopDelay: time.Hour})
		ctx := t.Context()
		require.NoError(t, f.Create(ctx, "a", hello))
		begin := time.Now()

		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.ErrorIs(t, f.Start(short, "a"), context.DeadlineExceeded)
		i, err := f.Get(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, webspace.StatusStarting, i.Status)
		require.NoError(t, f.Start(ctx, "a"), "joins the start that goes on")
		require.Equal(t, time.Minute, time.Since(begin))

		begin = time.Now()
		require.NoError(t, f.Stop(ctx, "a", 30*time.Second))
		require.Equal(t, 30*time.Second, time.Since(begin), "it is killed after the grace")

		result := make(chan error)
		go func() { result <- f.Start(ctx, "a") }()
		synctest.Wait()
		require.True(t, f.Crash("a"))
		require.ErrorIs(t, <-result, errdefs.ErrConflict)
		require.Equal(t, 3, f.Calls("Start"))
	})
}

func TestFakeHooks(t *testing.T) {
	lost, refused := errors.New("lost"), errors.New("refused")
	f := runtimetest.NewFake(&runtimetest.FakeOptions{
		Before: func(_ context.Context, op, name string) error {
			if op == "Start" && name == "b" {
				return refused
			}
			return nil
		},
		After: func(_ context.Context, op, name string, err error) error {
			if op == "Start" {
				return errors.Join(lost, err)
			}
			return err
		},
	})
	ctx := t.Context()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, f.Create(ctx, name, hello))
	}
	require.ErrorIs(t, f.Start(ctx, "a"), lost)
	require.ErrorIs(t, f.Start(ctx, "b"), refused)
	list, err := f.List(ctx, "")
	require.NoError(t, err)
	require.Len(t, list, 2)
	for _, i := range list {
		require.Equal(t, map[string]webspace.Status{"a": "running", "b": "stopped"}[i.Name], i.Status)
	}
}

func TestFakeEventFaults(t *testing.T) {
	watch := func(faults runtimetest.EventFaults) (names []string) {
		synctest.Test(t, func(t *testing.T) {
			f := runtimetest.NewFake(&runtimetest.FakeOptions{Events: faults})
			var group sync.WaitGroup
			group.Go(func() {
				err := f.Watch(t.Context(), func(e webspace.Event) { names = append(names, e.Instance) })
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
			})
			synctest.Wait()
			for n := range 100 {
				f.Put(webspace.Instance{Name: fmt.Sprintf("i%02d", n)})
			}
			f.CutWatch()
			group.Wait()
		})
		return names
	}
	plain := watch(runtimetest.EventFaults{})
	require.Len(t, plain, 101)
	require.Empty(t, plain[0])
	require.IsIncreasing(t, plain)
	require.Len(t, watch(runtimetest.EventFaults{Drop: 1}), 1)
	require.Len(t, watch(runtimetest.EventFaults{Double: 1}), 201)
	mixed := runtimetest.EventFaults{Drop: 0.2, Double: 0.2, Reorder: 0.2, Seed: 7}
	names := watch(mixed)
	require.Equal(t, names, watch(mixed), "one seed, one sequence")
	mixed.Seed = 8
	require.NotEqual(t, names, watch(mixed))
	shuffled := watch(runtimetest.EventFaults{Reorder: 0.5})
	require.NotEqual(t, plain, shuffled)
	require.Subset(t, plain, shuffled)
}

func TestFakeManyInstances(t *testing.T) {
	f := runtimetest.NewFake(nil)
	ctx := t.Context()
	addresses := map[netip.Addr]bool{}
	for n := range 10_000 {
		name := fmt.Sprint("ws-u", n)
		require.NoError(t, f.Create(ctx, name, hello))
		require.NoError(t, f.Start(ctx, name))
	}
	list, err := f.List(ctx, "ws-u")
	require.NoError(t, err)
	for _, i := range list {
		addresses[i.Address] = true
	}
	require.Len(t, addresses, 10_000)
}

func BenchmarkFakeList(b *testing.B) {
	f := runtimetest.NewFake(nil)
	for n := range 10_000 {
		f.Put(webspace.Instance{Name: fmt.Sprint("ws-u", n), Record: make([]byte, 500)})
	}
	for b.Loop() {
		_, _ = f.List(b.Context(), "ws-u")
	}
}

// harness returns the suite's harness for a fake that takes its time, wrapped.
func harness(wrap func(*runtimetest.Fake) webspace.Runtime) runtimetest.Harness {
	return runtimetest.Harness{
		New: func(*testing.T) webspace.Runtime {
			return wrap(runtimetest.NewFake(&runtimetest.FakeOptions{
				BootDelay: 5 * time.Millisecond,
				StopDelay: 5 * time.Millisecond,
			}))
		},
		Image:   "hello",
		Timeout: 5 * time.Second,
		Watcher: true, Imager: true, Execer: true, Consoler: true, Logger: true,
		Listens: true,
		Prints:  true, Users: true,
	}
}

func TestFake(t *testing.T) {
	runtimetest.Run(t, harness(func(f *runtimetest.Fake) webspace.Runtime { return f }))
}
