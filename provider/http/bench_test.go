package http_test

import (
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	web "github.com/netsoc/webspaced/provider/http"
)

const many = 10_000

func manyRoutes(b *testing.B) []provider.Route {
	routes := make([]provider.Route, many)
	for i := range routes {
		routes[i] = route(b, fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i))
	}
	return routes
}

var https = web.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"}

// BenchmarkSync takes many routes and answers with them once.
func BenchmarkSync(b *testing.B) {
	routes := manyRoutes(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := open(&https)
		require.NoError(b, err)
		require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes}))
		b.ReportMetric(float64(ask(p, nil).Body.Len()), "bytes")
	}
}

// BenchmarkResync compares many routes with those that stand and answers again; the answer is not made anew.
func BenchmarkResync(b *testing.B) {
	routes := manyRoutes(b)
	p, err := open(&https)
	require.NoError(b, err)
	require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes}))
	etag := ask(p, nil).Header().Get("Etag")
	b.ReportAllocs()
	for b.Loop() {
		current, err := p.Routes(b.Context())
		require.NoError(b, err)
		require.True(b, provider.Plan(routes, current).Empty())
		require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes}))
		require.Equal(b, etag, ask(p, nil).Header().Get("Etag"))
	}
}

func BenchmarkTraefik(b *testing.B) {
	traefiktest.Benchmark(b, func(b *testing.B, _ testbed.TraefikVersion) traefiktest.Store {
		opts := https
		opts.CertResolver = ""
		p, err := open(&opts)
		require.NoError(b, err)
		server := httptest.NewServer(p)
		b.Cleanup(server.Close)
		return traefiktest.Store{
			Flags: []string{"--providers.http.endpoint=" + server.URL, "--providers.http.pollinterval=50ms"},
			Open:  func(string) (provider.Provider, error) { return p, nil },
		}
	})
}
