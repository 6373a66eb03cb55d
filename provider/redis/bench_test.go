package redis_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	client "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/redis"
)

const many = 10_000

func manyRoutes(b *testing.B) []provider.Route {
	routes := make([]provider.Route, many)
	for i := range routes {
		routes[i] = route(b, fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i))
	}
	return routes
}

var https = redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"}

// BenchmarkSync writes many routes to an empty Redis.
func BenchmarkSync(b *testing.B) {
	routes, server := manyRoutes(b), testbed.Redis(b)
	db, p := dial(b, server), open(b, server, https)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		require.NoError(b, db.FlushDB(b.Context()).Err())
		b.StartTimer()
		require.NoError(b, p.Apply(b.Context(), put(routes...)))
	}
}

// BenchmarkResync compares many routes with those that stand, then puts them all in spite of the result; nothing is
// written.
func BenchmarkResync(b *testing.B) {
	routes, server := manyRoutes(b), testbed.Redis(b)
	db, p := dial(b, server), open(b, server, https)
	_, err := p.Routes(b.Context())
	require.NoError(b, err)
	require.NoError(b, p.Apply(b.Context(), put(routes...)))
	for name, step := range map[string]func(){
		"Routes": func() {
			current, err := p.Routes(b.Context())
			require.NoError(b, err)
			require.True(b, provider.Plan(routes, current).Empty())
		},
		"Apply": func() { require.NoError(b, p.Apply(b.Context(), put(routes...))) },
	} {
		b.Run(name, func(b *testing.B) {
			before := writes(b, db)
			b.ReportAllocs()
			for b.Loop() {
				step()
			}
			b.ReportMetric(float64(writes(b, db)-before), "writes")
			require.Equal(b, before, writes(b, db))
		})
	}
}

// BenchmarkChange moves one route among many.
func BenchmarkChange(b *testing.B) {
	routes, server := manyRoutes(b), testbed.Redis(b)
	p := open(b, server, https)
	require.NoError(b, p.Apply(b.Context(), put(routes...)))
	moved := [2]provider.Route{routes[0], routes[0]}
	moved[0].Backend = "http://gateway:8081"
	turn := 0
	for b.Loop() {
		require.NoError(b, p.Apply(b.Context(), put(moved[turn])))
		turn = 1 - turn
	}
}

// writes returns how many keys have been changed since Redis started.
func writes(b *testing.B, db *client.Client) int {
	info, err := db.Info(b.Context(), "persistence").Result()
	require.NoError(b, err)
	_, rest, found := strings.Cut(info, "rdb_changes_since_last_save:")
	require.True(b, found)
	n, err := strconv.Atoi(rest[:strings.IndexByte(rest, '\r')])
	require.NoError(b, err)
	return n
}

func BenchmarkTraefik(b *testing.B) {
	traefiktest.Benchmark(b, func(b *testing.B, _ testbed.TraefikVersion) traefiktest.Store {
		server := testbed.Redis(b)
		return traefiktest.Store{
			Flags: []string{"--providers.redis.endpoints=" + server.Address},
			Open: func(challengeURL string) (provider.Provider, error) {
				return open(b, server, redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"}), nil
			},
		}
	})
}
