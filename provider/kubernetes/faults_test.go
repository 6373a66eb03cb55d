package kubernetes_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/kubernetes"
)

func route(t testing.TB, name string, n int) provider.Route {
	return provider.Route{
		Name: name, Backend: fmt.Sprintf("http://198.18.%d.%d:80", n/250, n%250+1), Hosts: []provider.Host{host(t, name+".example.org")},
	}
}

// What others do to our objects is told, so that it does not stand until the next full read.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	p := w.open(t, kubernetes.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told atomic.Int64
	ended := make(chan error)
	go func() { ended <- p.Watch(ctx, func() { told.Add(1) }) }()
	require.NoError(t, p.Apply(ctx, put(route(t, "ws-u1", 1))))
	grows := func(change func()) {
		t.Helper()
		before := told.Load()
		change()
		require.Eventually(t, func() bool { return told.Load() > before }, 30*time.Second, 10*time.Millisecond)
	}
	slice := w.of(t, slicesOf, "webspaced", "ws-u1", "").GetName()
	// The first change may come before the watch stands.
	require.Eventually(t, func() bool {
		require.NoError(t, w.patch(t, slicesOf, slice, fmt.Sprintf(`{"metadata":{"annotations":{"a":"%d"}}}`, told.Load())))
		return told.Load() > 0
	}, 30*time.Second, 100*time.Millisecond)
	for range 3 {
		grows(func() {
			require.NoError(t, w.patch(t, slicesOf, slice, `{"endpoints":[{"addresses":["198.18.9.9"]}]}`))
		})
		require.NoError(t, p.Apply(ctx, put(route(t, "ws-u1", 1))))
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

// Each right that is missing is named, and what needs others goes on.
func TestMissingRights(t *testing.T) {
	w := newWorld(t)
	text, err := os.ReadFile("../../deploy/kubernetes/rbac.yaml")
	require.NoError(t, err)
	p := w.open(t, kubernetes.Options{})
	require.NoError(t, p.Apply(t.Context(), put(route(t, "ws-u1", 1))))
	for _, verb := range []string{"list", "create", "patch", "delete"} {
		less := strings.NewReplacer(verb+", ", "", ", "+verb+"]", "]").Replace(string(text))
		require.NotEqual(t, string(text), less)
		w.Apply(t, w.namespace, testbed.Manifests(t, []byte(less))...)
		require.Eventuallyf(t, func() bool { // the API server takes a moment to follow
			_, err := p.Routes(t.Context())
			moved := route(t, "ws-u1", int(time.Now().UnixNano()%200)+2)
			for _, e := range []error{err, p.Apply(t.Context(), provider.Changes{Put: []provider.Route{moved, route(t, "ws-"+verb, 9)}, Delete: []string{"ws-u9", "ws-" + verb + "2"}}),
				p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-" + verb}})} {
				if errdefs.IsPermissionDenied(e) {
					return true
				}
			}
			return false
		}, 30*time.Second, 100*time.Millisecond, verb)
		w.Apply(t, w.namespace, testbed.Manifests(t, text)...)
		require.Eventually(t, func() bool {
			return p.Apply(t.Context(), provider.Changes{Put: []provider.Route{route(t, "ws-u1", 1)}, Delete: []string{"ws-" + verb}}) == nil
		}, 30*time.Second, 100*time.Millisecond)
	}
}

// Without Traefik's kinds, and while nobody answers, calls say so in time; afterwards they work.
func TestAway(t *testing.T) {
	k := testbed.OwnKubernetes(t)
	w := in(t, k)
	p := w.open(t, kubernetes.Options{Timeout: 2 * time.Second})
	err := p.Apply(t.Context(), put(route(t, "ws-u1", 1)))
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "custom resource definitions")
	k.DefineTraefik(t, testbed.TraefikV3)
	require.Eventually(t, func() bool { return p.Apply(t.Context(), put(route(t, "ws-u1", 1))) == nil }, 30*time.Second, 200*time.Millisecond)

	for what, fault := range map[string][2]func(){
		"frozen": {k.API.Freeze, k.API.Thaw},
		"killed": {k.API.Kill, func() { k.API.Restart(t) }},
		"etcd":   {k.Etcd.Kill, func() { k.Etcd.Restart(t) }},
	} {
		fault[0]()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := p.Routes(ctx)
		require.Error(t, err, what)
		err = p.Apply(ctx, put(route(t, "ws-u2", 2)))
		require.Error(t, err, what)
		require.NoError(t, ctx.Err(), "%s: calls end by themselves", what)
		cancel()
		fault[1]()
		require.Eventually(t, func() bool { return p.Apply(t.Context(), put(route(t, "ws-u2", 2))) == nil }, time.Minute, 200*time.Millisecond, what)
		routes, err := p.Routes(t.Context())
		require.NoError(t, err, what)
		require.Len(t, routes, 2, what)
		require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u2"}}))
	}
}

// counted counts requests that write.
type counted struct {
	next   http.RoundTripper
	writes *atomic.Int64
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		c.writes.Add(1)
	}
	return c.next.RoundTrip(r)
}

func counting(config *rest.Config) (*rest.Config, *atomic.Int64) {
	config, writes := rest.CopyConfig(config), new(atomic.Int64)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next, writes} })
	return config, writes
}

func TestUnchangedIsNotWritten(t *testing.T) {
	w := newWorld(t)
	config, writes := counting(w.account)
	p, err := kubernetes.New(config, w.namespace, &kubernetes.Options{HTTPSEntryPoint: "websecure"})
	require.NoError(t, err)
	want := []provider.Route{route(t, "ws-u1", 1), route(t, "ws-u2", 2)}
	require.NoError(t, p.Apply(t.Context(), put(want...)))
	before := writes.Load()
	require.NotZero(t, before)
	current, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.True(t, provider.Plan(want, current).Empty())
	require.NoError(t, p.Apply(t.Context(), put(want...)))
	require.Equal(t, before, writes.Load())
	want[0].Backend = "http://198.18.0.9:80"
	require.NoError(t, p.Apply(t.Context(), put(want...)))
	require.Equal(t, before+1, writes.Load(), "a switch is one write")
}

// BenchmarkSync writes 1,000 routes to an empty namespace, and compares them with what is wanted.
func BenchmarkSync(b *testing.B) {
	for _, qps := range []float32{200, 1000} {
		b.Run(fmt.Sprintf("QPS=%v", qps), func(b *testing.B) {
			for b.Loop() {
				w := newWorld(b)
				config, writes := counting(w.account)
				p, err := kubernetes.New(config, w.namespace, &kubernetes.Options{HTTPEntryPoint: "web", QPS: qps, Burst: 2 * int(qps)})
				require.NoError(b, err)
				routes := make([]provider.Route, 1000)
				for i := range routes {
					routes[i] = route(b, fmt.Sprint("ws-u", i), i)
				}
				require.NoError(b, p.Apply(b.Context(), put(routes...)))
				before, began := writes.Load(), time.Now()
				current, err := p.Routes(b.Context())
				require.NoError(b, err)
				require.True(b, provider.Plan(routes, current).Empty())
				b.ReportMetric(float64(writes.Load()-before), "writes/resync")
				b.ReportMetric(time.Since(began).Seconds(), "s/resync")
			}
		})
	}
}
