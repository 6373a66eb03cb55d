package file_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
)

const many = 10_000

func manyRoutes(b *testing.B) []provider.Route {
	routes := make([]provider.Route, many)
	for i := range routes {
		routes[i] = route(b, fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i))
	}
	return routes
}

// BenchmarkSync writes many routes to an empty directory.
func BenchmarkSync(b *testing.B) {
	routes := manyRoutes(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := file.New(b.TempDir(), nil)
		require.NoError(b, err)
		require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes}))
	}
}

// BenchmarkResync compares many routes with those that stand, then puts them all in spite of the result; nothing is
// written.
func BenchmarkResync(b *testing.B) {
	routes, dir := manyRoutes(b), b.TempDir()
	p, err := file.New(dir, nil)
	require.NoError(b, err)
	require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes}))
	before := stat(b, dir)
	for name, step := range map[string]func(){
		"Routes": func() {
			current, err := p.Routes(b.Context())
			require.NoError(b, err)
			require.True(b, provider.Plan(routes, current).Empty())
		},
		"Apply": func() { require.NoError(b, p.Apply(b.Context(), provider.Changes{Put: routes})) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				step()
			}
			writes := 0
			for name, info := range stat(b, dir) {
				if !os.SameFile(before[name], info) || !info.ModTime().Equal(before[name].ModTime()) {
					writes++
				}
			}
			b.ReportMetric(float64(writes), "writes")
			require.Zero(b, writes)
		})
	}
}

func stat(b *testing.B, dir string) map[string]os.FileInfo {
	names, err := filepath.Glob(filepath.Join(dir, "*.yml"))
	require.NoError(b, err)
	require.Len(b, names, many)
	infos := make(map[string]os.FileInfo, many)
	for _, name := range names {
		infos[name], err = os.Stat(name)
		require.NoError(b, err)
	}
	return infos
}

func BenchmarkTraefik(b *testing.B) {
	traefiktest.Benchmark(b, func(b *testing.B, _ testbed.TraefikVersion) traefiktest.Store {
		dir := b.TempDir()
		return traefiktest.Store{
			Flags: []string{"--providers.file.directory=" + dir},
			Open: func(string) (provider.Provider, error) {
				return file.New(dir, &file.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"})
			},
		}
	})
}
