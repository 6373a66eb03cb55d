package provider_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

func host(t testing.TB, s string) provider.Host {
	t.Helper()
	h, err := provider.ParseHost(s)
	require.NoError(t, err)
	return h
}

func route(t testing.TB, name, backend string, hosts ...string) provider.Route {
	t.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, host(t, h))
	}
	return r
}

func TestPlan(t *testing.T) {
	a := route(t, "a", "http://198.18.0.1:80", "a.example.org")
	moved := route(t, "a", "http://198.18.0.2:80", "a.example.org")
	more := route(t, "a", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	renamed := route(t, "a", "http://198.18.0.1:80", "b.example.org")
	damaged := provider.Route{Name: "a"}
	b := route(t, "b", "http://198.18.0.3:80", "b.example.org")
	type routes = []provider.Route

	for _, test := range []struct {
		name             string
		desired, current routes
		want             provider.Changes
	}{
		{"nothing", nil, nil, provider.Changes{}},
		{"new", routes{a}, nil, provider.Changes{Put: routes{a}}},
		{"equal", routes{a}, routes{a}, provider.Changes{}},
		{"another backend", routes{moved}, routes{a}, provider.Changes{Put: routes{moved}}},
		{"another host", routes{renamed}, routes{a}, provider.Changes{Put: routes{renamed}}},
		{"one more host", routes{more}, routes{a}, provider.Changes{Put: routes{more}}},
		{"one host less", routes{a}, routes{more}, provider.Changes{Put: routes{a}}},
		{"damaged", routes{a}, routes{damaged}, provider.Changes{Put: routes{a}}},
		{"stale", nil, routes{a}, provider.Changes{Delete: []string{"a"}}},
		{"stale and damaged", nil, routes{damaged}, provider.Changes{Delete: []string{"a"}}},
		{"one of each", routes{b}, routes{a}, provider.Changes{Put: routes{b}, Delete: []string{"a"}}},
		{"sorted", routes{b, a}, nil, provider.Changes{Put: routes{a, b}}},
		{"deletes sorted", nil, routes{b, a}, provider.Changes{Delete: []string{"a", "b"}}},
		{"the last of two desired", routes{a, moved}, nil, provider.Changes{Put: routes{moved}}},
		{"the last of two desired stands", routes{moved, a}, routes{a}, provider.Changes{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			changes := provider.Plan(test.desired, test.current)
			require.Equal(t, test.want, changes)
			require.Equal(t, len(test.want.Put)+len(test.want.Delete) == 0, changes.Empty())
		})
	}
}

// apply is what a provider does.
func apply(current []provider.Route, changes provider.Changes) []provider.Route {
	next := slices.DeleteFunc(slices.Clone(current), func(r provider.Route) bool {
		return slices.Contains(changes.Delete, r.Name) ||
			slices.ContainsFunc(changes.Put, func(p provider.Route) bool { return p.Name == r.Name })
	})
	return byName(append(next, changes.Put...))
}

func byName(routes []provider.Route) []provider.Route {
	slices.SortFunc(routes, func(a, b provider.Route) int { return strings.Compare(a.Name, b.Name) })
	return routes
}

// TestPlanConverges: applied to the current routes, the changes give the desired ones, and then nothing is left to do;
// no change is one that nobody needs, and the arguments stay as they are.
func TestPlanConverges(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		some := func() []provider.Route {
			routes := []provider.Route{}
			for i := range 8 {
				if random.IntN(3) == 0 {
					continue
				}
				r := route(t, fmt.Sprint("r", i), fmt.Sprintf("http://198.18.0.%d:80", 1+random.IntN(2)), fmt.Sprintf("h%d.example.org", random.IntN(2)))
				routes = append(routes, r)
			}
			return routes
		}
		desired, current := some(), some()
		for i := range current {
			if random.IntN(8) == 0 {
				current[i] = provider.Route{Name: current[i].Name} // damaged
			}
		}
		wantDesired, wantCurrent := slices.Clone(desired), slices.Clone(current)
		random.Shuffle(len(desired), func(i, j int) { desired[i], desired[j] = desired[j], desired[i] })

		changes := provider.Plan(desired, current)
		require.Equal(t, wantCurrent, current, "seed %d", seed)
		require.Equal(t, wantDesired, byName(desired), "seed %d", seed)
		after := apply(current, changes)
		require.Equal(t, wantDesired, after, "seed %d", seed)
		require.True(t, provider.Plan(desired, after).Empty(), "seed %d", seed)
		for _, r := range changes.Put {
			require.False(t, slices.ContainsFunc(current, r.Equal), "seed %d", seed)
		}
		for _, name := range changes.Delete {
			require.True(t, slices.ContainsFunc(current, func(r provider.Route) bool { return r.Name == name }), "seed %d", seed)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	current := make([]provider.Route, 10_000)
	for i := range current {
		current[i] = route(b, fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i))
	}
	desired := slices.Clone(current)
	desired[17].Backend = "http://gateway:8081"
	b.ReportAllocs()
	for b.Loop() {
		if changes := provider.Plan(desired, current); len(changes.Put) != 1 {
			b.Fatal(changes)
		}
	}
}
