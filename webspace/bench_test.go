package webspace_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// BenchmarkEvent measures what one event costs that changes a route, with few and with many webspaces.
func BenchmarkEvent(b *testing.B) {
	const events = 100 // of as many webspaces: one webspace is looked at every 100 ms at most
	cost := map[int]time.Duration{}
	for b.Loop() {
		for _, n := range []int{100, 10_000} {
			var puts atomic.Int32
			w := newWorld(b, func(w *world, _ *runtimetest.FakeOptions) { populate(w, n) })
			fill(w, n)
			awaitPuts(b, w, n)
			done := make(chan struct{}, 1)
			w.provider.Hook(func(_ context.Context, call providertest.Call) error {
				if call.Op == providertest.OpPut && puts.Add(1)%events == 0 {
					done <- struct{}{}
				}
				return nil
			})
			const rounds = 5
			for round := range rounds {
				time.Sleep(150 * time.Millisecond)
				runtime.GC()
				start := time.Now()
				for i := range events {
					id := webspaceUser(i * (n / events))
					record := fmt.Appendf(nil, `{"user":%d,"domains":["d%d-%d.example.org"]}`, id, round, i)
					require.NoError(b, w.runtime.SetRecord(b.Context(), "ws-u"+id.String(), record, ""))
				}
				<-done
				cost[n] += time.Since(start) / events / rounds
			}
			w.stop()
		}
	}
	few, many := cost[100]/time.Duration(b.N), cost[10_000]/time.Duration(b.N)
	b.ReportMetric(float64(few.Nanoseconds()), "ns/event-of-100")
	b.ReportMetric(float64(many.Nanoseconds()), "ns/event-of-10000")
	b.ReportMetric(float64(many)/float64(few), "ratio")
	b.ReportMetric(0, "ns/op")
}

// awaitPuts waits until so many routes were written.
func awaitPuts(tb testing.TB, w *world, n int) {
	for deadline := time.Now().Add(time.Minute); w.provider.Calls(providertest.OpPut) < n; time.Sleep(time.Millisecond) {
		require.True(tb, time.Now().Before(deadline), "%d of %d routes", w.provider.Calls(providertest.OpPut), n)
	}
}

// BenchmarkFullSync measures a daemon's start with 10 000 webspaces and no routes, until all routes are written.
func BenchmarkFullSync(b *testing.B) {
	const n = 10_000
	w := newWorld(b, func(w *world, _ *runtimetest.FakeOptions) { populate(w, n) })
	fill(w, n)
	awaitPuts(b, w, n)
	w.stop()
	w.Manager = nil
	var before, after runtime.MemStats
	var took time.Duration
	var held, allocated uint64
	for b.Loop() {
		routes, err := w.provider.Routes(b.Context())
		require.NoError(b, err)
		var changes provider.Changes
		for _, route := range routes {
			changes.Delete = append(changes.Delete, route.Name)
		}
		require.NoError(b, w.provider.Apply(b.Context(), changes))
		routes, changes = nil, provider.Changes{}
		puts := w.provider.Calls(providertest.OpPut)
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		w.start()
		awaitPuts(b, w, puts+n)
		took += time.Since(start)
		runtime.ReadMemStats(&after)
		allocated += after.TotalAlloc - before.TotalAlloc
		runtime.GC()
		runtime.ReadMemStats(&after)
		held += after.HeapAlloc - before.HeapAlloc
		w.stop()
		w.Manager = nil
	}
	b.ReportMetric(took.Seconds()/float64(b.N), "s/sync")
	b.ReportMetric(float64(held)/float64(b.N)/(1<<20), "MiB-held")
	b.ReportMetric(float64(allocated)/float64(b.N)/(1<<20), "MiB-allocated") // no more than this at any time
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWarm measures what a request to a running webspace pays.
func BenchmarkWarm(b *testing.B) {
	w := newWorld(b, nil)
	<-w.Synced()
	w.create(1000)
	_, err := w.EnsureStarted(b.Context(), 1000)
	require.NoError(b, err)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			target, err := w.Route("alice.example.test")
			if err != nil {
				b.Fatal(err)
			}
			endpoint, ok := w.Ready(target)
			if !ok {
				b.Fatal("not ready")
			}
			endpoint.Release(nil)
		}
	})
}

// BenchmarkActivation measures how much longer an activation takes than the instance itself until its port is open.
func BenchmarkActivation(b *testing.B) {
	const boot, listen = 50 * time.Millisecond, 50 * time.Millisecond
	w, _ := newLiveWorld(b, boot, listen)
	<-w.Synced()
	name := w.create(1000)
	var total, most time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		endpoint, err := w.Activate(b.Context(), proxy.Target{Webspace: name, Port: 8080})
		took := time.Since(start)
		require.NoError(b, err)
		endpoint.Release(nil)
		total, most, n = total+took, max(most, took), n+1
		require.NoError(b, w.Stop(b.Context(), 1000))
	}
	b.ReportMetric((total/time.Duration(n)-boot-listen).Seconds()*1000, "ms-over-boot")
	b.ReportMetric((most-boot-listen).Seconds()*1000, "ms-over-boot-max")
}

// BenchmarkHerd measures 1000 first requests at once from 250 sources to one stopped webspace, through the gateway.
func BenchmarkHerd(b *testing.B) {
	w, gateway := newLiveWorld(b, 100*time.Millisecond, 100*time.Millisecond)
	<-w.Synced()
	w.create(1000)
	answered, starts := 0, 0
	for b.Loop() {
		before := w.runtime.Calls("Start")
		answered += herd(b, gateway, 250, 4)
		starts += w.runtime.Calls("Start") - before
		require.NoError(b, w.Stop(b.Context(), 1000))
	}
	b.ReportMetric(float64(answered)/float64(b.N), "answered")
	b.ReportMetric(float64(starts)/float64(b.N), "starts")
}

// BenchmarkRecord measures reading a record, of which a full sync does one for each webspace.
func BenchmarkRecord(b *testing.B) {
	w := newWorld(b, nil)
	w.runtime.Put(stored(1000, webspace.StatusStopped, netip.Addr{}))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Get(b.Context(), 1000); err != nil {
			b.Fatal(err)
		}
	}
}
