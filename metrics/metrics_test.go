package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/metrics"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var phases = []string{"queue", "start", "address", "probe", "first_byte"}

func phaseSample(suffix, phase string) string {
	return fmt.Sprintf(`webspaced_boot_phase_duration_seconds_%s{phase="%s"}`, suffix, phase)
}

// TestPhases boots a webspace by a request: each phase is seen once, and together they are the time that it took.
func TestPhases(t *testing.T) {
	const slow = 100 * time.Millisecond
	w := newWorld(t, 1, &runtimetest.FakeOptions{Before: func(_ context.Context, op, _ string) error {
		if op == "Start" {
			time.Sleep(slow)
		}
		return nil
	}}, nil)
	w.create(t, 0)
	began := time.Now()
	require.Equal(t, 200, w.visit(0))
	took := time.Since(began).Seconds()
	samples, _ := w.scrape(t)
	sum := 0.0
	for _, phase := range phases {
		require.Equal(t, 1.0, samples[phaseSample("count", phase)], phase)
		sum += samples[phaseSample("sum", phase)]
	}
	require.GreaterOrEqual(t, samples[phaseSample("sum", "start")], slow.Seconds())
	require.LessOrEqual(t, sum, took, "phases do not overlap")
	require.Greater(t, sum, took/2, "and leave little out")
	require.Equal(t, 1.0, samples[`webspaced_boot_duration_seconds_count{result="ready"}`])
	require.Equal(t, 1.0, samples["webspaced_hold_duration_seconds_count"])
	require.Zero(t, samples["webspaced_held"])

	require.Equal(t, 200, w.visit(0), "it runs, so that this is no boot")
	samples, _ = w.scrape(t)
	for _, phase := range phases {
		require.Equal(t, 1.0, samples[phaseSample("count", phase)], phase)
	}
}

func TestFailedBoot(t *testing.T) {
	w := newWorld(t, 1, &runtimetest.FakeOptions{Before: func(_ context.Context, op, _ string) error {
		if op == "Start" {
			return errors.New("out of loop devices")
		}
		return nil
	}}, nil)
	w.create(t, 0)
	require.Equal(t, 503, w.visit(0))
	samples, _ := w.scrape(t)
	require.Equal(t, 1.0, samples[`webspaced_boot_duration_seconds_count{result="start"}`])
	require.Zero(t, samples[`webspaced_boot_duration_seconds_count{result="ready"}`])
	require.Equal(t, 1.0, samples[`webspaced_gateway_failures_total{status="503"}`])
	require.Zero(t, samples[phaseSample("count", "queue")])
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, 1, nil, &proxy.HoldLimits{Webspace: 1})
	w.create(t, 0)
	release, err := w.holds.Acquire("ws-u1000", netip.Addr{})
	require.NoError(t, err)
	defer release()
	require.Equal(t, 503, w.visit(0))
	samples, _ := w.scrape(t)
	require.Equal(t, 1.0, samples[`webspaced_refusals_total{reason="webspace",what="hold"}`])
	require.Equal(t, 1.0, samples["webspaced_held"])
}

// TestStates counts webspaces, and what the API and the provider were asked.
func TestStates(t *testing.T) {
	w := newWorld(t, 3, nil, nil)
	for i := range 3 {
		w.create(t, i)
	}
	require.Equal(t, 200, w.visit(0))
	require.Equal(t, 200, w.call(1, "GET", "/v1/webspace/self").Code)
	require.Equal(t, 404, w.call(1, "GET", "/"+canary).Code)
	require.Equal(t, 404, w.call(0, "GET", "/v1/webspace/"+canary+"-nobody").Code)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		samples, _ := w.scrape(t)
		require.Equal(c, 2.0, samples[`webspaced_webspaces{state="stopped"}`])
		require.Equal(c, 1.0, samples[`webspaced_webspaces{state="running"}`])
		require.Equal(c, 3.0, samples["webspaced_routes"])
		require.GreaterOrEqual(c, samples[`webspaced_route_changes_total{change="put",result="ok"}`], 3.0)
		require.Positive(c, samples["webspaced_reconcile_duration_seconds_count"])
		require.Positive(c, samples["webspaced_sync_last_success_timestamp_seconds"])
		require.Equal(c, 1.0, samples[`webspaced_api_request_duration_seconds_count{operation="getWebspace",status="2xx"}`])
		require.Equal(c, 1.0, samples[`webspaced_api_request_duration_seconds_count{operation="getWebspace",status="4xx"}`])
		require.Positive(c, samples[`webspaced_api_request_duration_seconds_count{operation="other",status="4xx"}`])
		require.Equal(c, 1.0, samples[`webspaced_identity_duration_seconds_count{operation="by_username",result="refused"}`])
	}, 10*time.Second, 10*time.Millisecond)
}

// TestLabelsAreBounded has many users do things: there are no more series than with one, and nobody's name is in them.
func TestLabelsAreBounded(t *testing.T) {
	users := 1000
	w := newWorld(t, users, nil, nil)
	w.create(t, 0)
	visit := func(i int) {
		w.visit(i)
		w.call(i, "GET", "/v1/webspace/self")
		w.call(i, "GET", "/"+w.accounts[i].User.Username)
		w.call(i, "DELETE", "/v1/webspace/self/ports/"+fmt.Sprint(50_000+i))
	}
	visit(0)
	visit(1)
	_, _ = w.scrape(t) // is a request as well
	before, _ := w.scrape(t)
	for i := 2; i < users; i++ {
		visit(i)
	}
	after, text := w.scrape(t)
	require.Empty(t, slices.DeleteFunc(ours(after), func(name string) bool { _, ok := before[name]; return ok }))
	require.NotContains(t, text, canary)
	require.NotContains(t, text, "example.test")
	require.NotContains(t, text, "ws-u")
}

// ours are the series without those of the Go runtime.
func ours(samples map[string]float64) (names []string) {
	for name := range samples {
		if strings.HasPrefix(name, "webspaced_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestNamesAreAsPrometheusWantsThem(t *testing.T) {
	w := newWorld(t, 1, nil, nil)
	w.call(0, "GET", "/v1/webspace/self")
	_, text := w.scrape(t)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	require.Contains(t, text, "go_goroutines")
	require.Contains(t, text, `webspaced_build_info{goversion="go`)
}

// TestDocumentation holds the list of metrics against what there is.
func TestDocumentation(t *testing.T) {
	w := newWorld(t, 1, nil, nil)
	w.call(0, "GET", "/v1/webspace/self")
	_, text := w.scrape(t)
	page, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	var documented, exist []string
	for _, match := range regexp.MustCompile("(?m)^\\| `(webspaced_[a-z_]+)` \\| \\w").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, match[1])
	}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (webspaced_[a-z_]+) `).FindAllStringSubmatch(text, -1) {
		exist = append(exist, match[1])
	}
	require.ElementsMatch(t, exist, documented)
}

func TestToken(t *testing.T) {
	handler := metrics.New("").Handler("s3cret")
	for header, status := range map[string]int{
		"": 401, "Bearer": 401, "Bearer ": 401, "Bearer s3cre": 401, "Basic s3cret": 401, "s3cret": 401,
		"Bearer s3cret": 200, "bearer s3cret": 200,
	} {
		req := httptest.NewRequest("GET", "/metrics", nil)
		if header != "" {
			req.Header.Set("Authorization", header)
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, req)
		require.Equal(t, status, rec.Code, header)
		require.Equal(t, status == 401, !strings.Contains(rec.Body.String(), "go_goroutines"), header)
	}
}

func TestProviderFailures(t *testing.T) {
	w := newWorld(t, 1, nil, nil)
	fake := providertest.NewFake()
	fake.Hook(func(_ context.Context, call providertest.Call) error {
		if call.Route == "bad" {
			return fmt.Errorf("no: %w", errdefs.ErrUnavailable)
		}
		return nil
	})
	host, err := provider.ParseHost("a.example.test")
	require.NoError(t, err)
	route := provider.Route{Name: "good", Hosts: []provider.Host{host}, Backend: "http://gateway:80"}
	bad := route
	bad.Name = "bad"
	require.Error(t, w.metrics.Provider(fake).Apply(t.Context(), provider.Changes{Put: []provider.Route{route, bad}, Delete: []string{"gone"}}))
	samples, _ := w.scrape(t)
	require.Equal(t, 1.0, samples[`webspaced_route_changes_total{change="put",result="ok"}`])
	require.Equal(t, 1.0, samples[`webspaced_route_changes_total{change="put",result="error"}`])
	require.Equal(t, 1.0, samples[`webspaced_route_changes_total{change="delete",result="ok"}`])
	require.Equal(t, 1.0, samples[`webspaced_provider_duration_seconds_count{operation="write",result="error"}`])
	require.Nil(t, w.metrics.Provider(nil))
	_, watches := w.metrics.Provider(fake).(provider.Watcher)
	require.False(t, watches)
	_, watches = w.metrics.Provider(watched{fake, nil}).(provider.Watcher)
	require.True(t, watches)
}

// TestOptionalInterfaces: what is measured is still found.
func TestOptionalInterfaces(t *testing.T) {
	m := metrics.New("")
	plain := struct {
		identity.Authenticator
		identity.Directory
	}{}
	_, ok := m.Directory(plain).(identity.Learner)
	require.False(t, ok)
	_, ok = m.Authenticator(plain).(identity.Refresher)
	require.False(t, ok)

	all := &learner{}
	l, ok := m.Directory(all).(identity.Learner)
	require.True(t, ok)
	l.Learn(7, "gina")
	require.Equal(t, identity.UserID(7), all.learnt)
	r, ok := m.Authenticator(all).(identity.Refresher)
	require.True(t, ok)
	user, err := r.Fresh(t.Context(), "token")
	require.NoError(t, err)
	require.Equal(t, identity.UserID(8), user.ID)
}

type learner struct {
	identity.Authenticator
	identity.Directory
	learnt identity.UserID
}

func (l *learner) Learn(id identity.UserID, _ string) { l.learnt = id }
func (l *learner) Fresh(context.Context, string) (identity.User, error) {
	return identity.User{ID: 8}, nil
}

func BenchmarkScrape(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b, n, nil, nil)
			for i := range n {
				w.create(b, i)
			}
			b.ReportAllocs()
			for b.Loop() {
				w.metrics.Handler("").ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
			}
		})
	}
}

type watched struct {
	provider.Provider
	provider.Watcher
}
