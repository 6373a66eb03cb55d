package providertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

// Harness is a store as the suite handles it: through providers, through the eyes of the reverse proxy, and behind the
// providers' backs. Its functions are called by the test's goroutine, Lookup by others too.
type Harness struct {
	// Open returns a new provider for the named deployment on the store, as a daemon does when it starts. Several may
	// be open at a time, for one deployment too.
	Open func(deployment string) (provider.Provider, error)

	// Lookup returns the backend to which a reverse proxy that reads the store at this moment sends what it gets for
	// the host; empty if it has none. Everything the proxy reads counts, whoever wrote it. An error says that the
	// proxy could not have used what it read.
	Lookup func(host provider.Host) (backend string, err error)

	// Damage has, by name, ways in which a stored route can come to differ from what the provider wrote: edited, torn,
	// half there. Each still leaves it recognisable as the deployment's.
	Damage map[string]func(deployment, route string) error

	// WriteForeign writes entries that carry no deployment's mark, as like the named deployment's as the store
	// allows: under other names, and in the very place of the named route where that can be.
	WriteForeign func(deployment, route string) error
	// ReadForeign returns all that WriteForeign wrote, as it is now, byte for byte.
	ReadForeign func() ([]byte, error)

	// Private says that nobody but the provider gets at the store, its memory say: the three above are nil.
	Private bool

	// HTTPOnly says that the reverse proxy can not pass TLS through: a route with a tcp:// backend fails with
	// InvalidArgument.
	HTTPOnly bool

	// Certificates are the kinds that the store has a way to say. A route with one of another kind fails with
	// InvalidArgument.
	Certificates []CertificateKind
	// HasCertificate reports whether a reverse proxy that reads the store at this moment gets this certificate for its
	// host, all parts of it. Not needed if there are no kinds.
	HasCertificate func(provider.Certificate) (bool, error)
}

// CertificateKind is one of the ways to say where a certificate is.
type CertificateKind string

// The kinds, which are the fields of [provider.Certificate].
const (
	Secret   CertificateKind = "secret"
	Resolver CertificateKind = "resolver"
	PEM      CertificateKind = "pem"
)

// Run checks a provider against the documentation of [provider.Provider]. newHarness is called for each subtest and
// returns a harness of an empty store; what it needs to clean up goes to t.Cleanup.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"Empty", (*suite).empty},
		{"PutReplaceDelete", (*suite).putReplaceDelete},
		{"Idempotent", (*suite).idempotent},
		{"ReplacedInOneStep", (*suite).replacedInOneStep},
		{"Reopened", (*suite).reopened},
		{"TCP", (*suite).tcp},
		{"Certificates", (*suite).certificates},
		{"UnsupportedCertificates", (*suite).unsupportedCertificates},
		{"OneBadChange", (*suite).oneBadChange},
		{"Drift", (*suite).drift},
		{"Foreign", (*suite).foreign},
		{"Deployments", (*suite).deployments},
		{"Cancelled", (*suite).cancelled},
		{"Concurrent", (*suite).concurrent},
		{"Hosts", (*suite).hosts},
		{"Thousand", (*suite).thousand},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, Harness: newHarness(t)}
			if s.Private && (test.name == "Drift" || test.name == "Foreign") {
				return // what they are about can not happen
			}
			test.run(s)
		})
	}
}

// suite is one subtest. Its deployment is "one" unless said otherwise.
type suite struct {
	*testing.T
	Harness
}

func (s *suite) open(deployment string) provider.Provider {
	s.Helper()
	p, err := s.Open(deployment)
	require.NoError(s, err)
	return p
}

func (s *suite) route(name, backend string, hosts ...string) provider.Route {
	s.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(s, err)
		r.Hosts = append(r.Hosts, host)
	}
	slices.SortFunc(r.Hosts, provider.Host.Compare)
	require.NoError(s, r.Validate())
	return r
}

func (s *suite) put(p provider.Provider, routes ...provider.Route) {
	s.Helper()
	require.NoError(s, p.Apply(s.Context(), provider.Changes{Put: routes}))
}

func (s *suite) remove(p provider.Provider, names ...string) {
	s.Helper()
	require.NoError(s, p.Apply(s.Context(), provider.Changes{Delete: names}))
}

// holds requires that Routes returns these routes, and that the reverse proxy serves them.
func (s *suite) holds(p provider.Provider, want ...provider.Route) {
	s.Helper()
	routes, err := p.Routes(s.Context())
	require.NoError(s, err)
	slices.SortFunc(routes, byName)
	slices.SortFunc(want, byName)
	require.Len(s, routes, len(want), "routes: %v", routes)
	for i := range want {
		require.Truef(s, want[i].Equal(routes[i]), "want %v, have %v", want[i], routes[i])
		for _, host := range want[i].Hosts[:min(2, len(want[i].Hosts))] {
			s.serves(host, want[i].Backend)
		}
	}
}

func (s *suite) serves(host provider.Host, backend string) {
	s.Helper()
	have, err := s.Lookup(host)
	require.NoError(s, err)
	require.Equal(s, backend, have, "backend of %s", host)
}

func (s *suite) empty() {
	p := s.open("one")
	s.holds(p)
	require.NoError(s, p.Apply(s.Context(), provider.Changes{}))
	s.holds(p)
	s.serves(s.route("a", "http://127.0.0.1:1", "nobody.example.org").Hosts[0], "")
}

func (s *suite) putReplaceDelete() {
	p := s.open("one")
	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org", "www.a.example.net")
	b := s.route("ws-u2", "http://[2001:db8::2]:8080", "b.example.org")
	c := s.route("ws-u3", "http://gateway:8081", "c.example.org")
	s.put(p, a, b, c)
	s.holds(p, a, b, c)

	moved := s.route("ws-u1", "http://gateway:8082", "a.example.org", "new.a.example.net")
	s.put(p, moved, c)
	s.holds(p, moved, b, c)
	s.serves(s.route("x", "http://127.0.0.1:1", "www.a.example.net").Hosts[0], "")

	// One Apply carries both kinds of changes.
	require.NoError(s, p.Apply(s.Context(), provider.Changes{Put: []provider.Route{a}, Delete: []string{"ws-u2"}}))
	s.holds(p, a, c)
	s.serves(b.Hosts[0], "")
	s.remove(p, "ws-u1", "ws-u3")
	s.holds(p)
	s.serves(a.Hosts[0], "")
}

func (s *suite) idempotent() {
	p := s.open("one")
	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org")
	s.remove(p, "ws-u1", "never-was")
	s.put(p, a)
	s.put(p, a)
	s.holds(p, a)
	s.remove(p, "ws-u1")
	s.remove(p, "ws-u1")
	s.holds(p)
	s.put(p, a)
	s.holds(p, a)
}

func (s *suite) replacedInOneStep() {
	p := s.open("one")
	old := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	moved := s.route("ws-u1", "http://198.18.0.2:80", "a.example.org", "c.example.org")
	s.put(p, old)

	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for reads := 0; ; reads++ {
				backend, err := s.Lookup(old.Hosts[0])
				if err != nil || backend != old.Backend && backend != moved.Backend {
					s.Errorf("read %d during a replacement: backend %q, error %v", reads, backend, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		err = p.Apply(s.Context(), provider.Changes{Put: []provider.Route{[]provider.Route{moved, old}[i%2]}})
	}
	close(done)
	readers.Wait()
	require.NoError(s, err)
}

func (s *suite) reopened() {
	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org")
	b := s.route("ws-u2", "http://198.18.0.2:80", "b.example.org")
	s.put(s.open("one"), a, b)
	again := s.open("one")
	s.holds(again, a, b)
	s.remove(again, "ws-u1")
	s.holds(s.open("one"), b)
}

func (s *suite) tcp() {
	p := s.open("one")
	web := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org")
	tcp := s.route("ws-u1", "tcp://[2001:db8::1]:443", "a.example.org")
	if s.HTTPOnly {
		err := p.Apply(s.Context(), provider.Changes{Put: []provider.Route{tcp}})
		require.Truef(s, errdefs.IsInvalidArgument(err), "%v", err)
		return
	}
	// A webspace may change what it wants at any time.
	for range 2 {
		s.put(p, web)
		s.holds(p, web)
		s.put(p, tcp)
		s.holds(p, tcp)
	}
	s.remove(p, "ws-u1")
	s.holds(p)
	s.serves(tcp.Hosts[0], "")
}

func (s *suite) oneBadChange() {
	p := s.open("one")
	good := []provider.Route{
		s.route("ws-u1", "http://198.18.0.1:80", "a.example.org"),
		s.route("ws-u3", "http://198.18.0.3:80", "c.example.org"),
	}
	gone := s.route("ws-u4", "http://198.18.0.4:80", "d.example.org")
	s.put(p, gone)

	for name, bad := range map[string]provider.Route{
		"no backend":  {Name: "ws-u2", Hosts: s.route("x", "http://127.0.0.1:1", "b.example.org").Hosts},
		"no hosts":    {Name: "ws-u2", Backend: "http://198.18.0.2:80"},
		"zero host":   {Name: "ws-u2", Backend: "http://198.18.0.2:80", Hosts: make([]provider.Host, 1)},
		"bad backend": {Name: "ws-u2", Backend: "http://198.18.0.2:80/`{{", Hosts: s.route("x", "http://127.0.0.1:1", "b.example.org").Hosts},
		"bad name":    {Name: "../ws-u2", Backend: "http://198.18.0.2:80", Hosts: s.route("x", "http://127.0.0.1:1", "b.example.org").Hosts},
	} {
		changes := provider.Changes{Put: []provider.Route{good[0], bad, good[1]}, Delete: []string{"ws-u4"}}
		err := p.Apply(s.Context(), changes)
		failed, ok := errors.AsType[*provider.RouteError](err)
		require.Truef(s, ok, "%s: %T is no *RouteError: %v", name, err, err)
		require.Equal(s, bad.Name, failed.Route, name)
		require.Truef(s, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
		s.holds(p, good...)
	}
}

func (s *suite) drift() {
	if s.Private {
		s.Skip("nobody else gets at the store")
	}
	require.NotEmpty(s, s.Damage, "the harness knows no way to damage a route")
	p := s.open("one")
	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	other := s.route("ws-u2", "http://198.18.0.2:80", "c.example.org")
	s.put(p, other)
	for name, damage := range s.Damage {
		s.put(p, a)
		s.holds(p, a, other)
		require.NoError(s, damage("one", "ws-u1"), name)

		// It differs from what was put, whatever it says now, and nothing else does.
		routes, err := p.Routes(s.Context())
		require.NoError(s, err, name)
		require.Equal(s, provider.Changes{Put: []provider.Route{a}}, provider.Plan([]provider.Route{a, other}, routes), name)
		require.Equal(s, provider.Changes{Delete: []string{"ws-u1"}}, provider.Plan([]provider.Route{other}, routes), name)

		// It is written anew, or removed.
		s.put(p, a)
		s.holds(p, a, other)
		require.NoError(s, damage("one", "ws-u1"), name)
		s.remove(p, "ws-u1")
		s.holds(p, other)
	}
}

func (s *suite) foreign() {
	if s.Private {
		s.Skip("nobody else gets at the store")
	}
	p := s.open("one")
	require.NoError(s, s.WriteForeign("one", "ws-u1"))
	before, err := s.ReadForeign()
	require.NoError(s, err)
	require.NotEmpty(s, before, "the harness wrote nothing foreign")
	s.holds(p)

	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org")
	b := s.route("ws-u2", "http://198.18.0.2:80", "b.example.org")
	want := []provider.Route{b}
	err = p.Apply(s.Context(), provider.Changes{Put: []provider.Route{a, b}})
	if failed, ok := errors.AsType[*provider.RouteError](err); ok {
		require.Equal(s, "ws-u1", failed.Route)
		require.Truef(s, errdefs.IsAlreadyExists(err), "%v", err)
	} else {
		require.NoError(s, err) // the foreign entries are in nobody's way
		want = append(want, a)
	}
	s.holds(p, want...)
	s.remove(p, "ws-u1", "ws-u2")
	s.holds(p)
	s.holds(s.open("one"))

	after, err := s.ReadForeign()
	require.NoError(s, err)
	require.Equal(s, string(before), string(after), "foreign entries were changed")
}

func (s *suite) deployments() {
	// Names that begin alike, and pairs that a careless separator makes one.
	first := map[string]provider.Route{}
	names := []string{"one", "one-ws", "on"}
	for i, deployment := range names {
		r := s.route("ws-u1", fmt.Sprintf("http://198.18.0.%d:80", i+1), fmt.Sprintf("h%d.example.org", i))
		s.put(s.open(deployment), r)
		first[deployment] = r
	}
	second := s.route("u1", "http://198.18.0.9:80", "h9.example.org")
	s.put(s.open("one-ws"), second)

	s.holds(s.open("one"), first["one"])
	s.holds(s.open("on"), first["on"])
	s.holds(s.open("one-ws"), first["one-ws"], second)
	s.remove(s.open("one"), "ws-u1", "u1", "ws-ws-u1")
	s.holds(s.open("one"))
	s.holds(s.open("on"), first["on"])
	s.holds(s.open("one-ws"), first["one-ws"], second)
}

func (s *suite) cancelled() {
	p := s.open("one")
	a := s.route("ws-u1", "http://198.18.0.1:80", "a.example.org")
	b := s.route("ws-u2", "http://198.18.0.2:80", "b.example.org")
	s.put(p, a)
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, err := p.Routes(ctx)
	require.ErrorIs(s, err, context.Canceled)
	err = p.Apply(ctx, provider.Changes{Put: []provider.Route{b}, Delete: []string{"ws-u1"}})
	require.ErrorIs(s, err, context.Canceled)
	s.holds(p, a)
	s.put(p, b)
	s.holds(p, a, b)
}

func (s *suite) concurrent() {
	p, twin := s.open("one"), s.open("one")
	var want []provider.Route
	var wg sync.WaitGroup
	for i := range 8 {
		r := s.route(fmt.Sprintf("ws-u%d", i), fmt.Sprintf("http://198.18.0.%d:80", i+1), fmt.Sprintf("h%d.example.org", i))
		other := r
		other.Backend = "http://gateway:8081"
		want = append(want, r)
		// Calls for one route come one after the other, those for different routes overlap.
		wg.Go(func() {
			for range 5 {
				err := errors.Join(
					p.Apply(s.Context(), provider.Changes{Put: []provider.Route{other}}),
					twin.Apply(s.Context(), provider.Changes{Delete: []string{r.Name}}),
					p.Apply(s.Context(), provider.Changes{Put: []provider.Route{r}}),
				)
				_, listErr := twin.Routes(s.Context())
				if err := errors.Join(err, listErr); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.holds(p, want...)
	s.holds(twin, want...)
}

// hosts has the longest names, and those that look like something else to a careless reader: numbers, booleans, a
// punycode label, YAML and JSON words.
func (s *suite) hosts() {
	long := strings.Repeat("a", 63)
	name := strings.Join([]string{long, long, long, strings.Repeat("b", 61)}, ".")
	require.Len(s, name, 253)
	hosts := []string{
		name, "xn--bcher-kva.example.org", "xn--80ak6aa92e.com", "0.example", "1e3.example", "0x1f.example", "00.org",
		"true.example", "null.example", "no.example", "y.no", "a--b.example", "1-2-3-4.example", "127-0-0-1.example",
	}
	p := s.open("one")
	var want []provider.Route
	for i, host := range hosts {
		want = append(want, s.route(fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.0.%d:80", i+1), host))
	}
	// Route names are labels, too.
	want = append(want,
		s.route(long, "http://198.18.1.1:80", "long.example"),
		s.route("0", "http://198.18.1.2:80", "zero.example"),
		s.route("1e3", "http://198.18.1.3:80", "float.example"),
		s.route("null", "http://198.18.1.4:80", "nothing.example"),
	)
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("h%d.%s.example", i, long))
	}
	want = append(want, s.route("many", "http://198.18.1.5:80", many...))
	s.put(p, want...)
	s.holds(p, want...)
	s.holds(s.open("one"), want...)
}

func (s *suite) thousand() {
	p := s.open("one")
	var desired []provider.Route
	for i := range 1000 {
		desired = append(desired, s.route(
			fmt.Sprintf("ws-u%d", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i)))
	}
	s.put(p, desired...)
	current, err := p.Routes(s.Context())
	require.NoError(s, err)
	require.True(s, provider.Plan(desired, current).Empty())
	s.serves(desired[0].Hosts[0], desired[0].Backend)
	s.serves(desired[999].Hosts[0], desired[999].Backend)

	changes := provider.Plan(desired[:10], current)
	require.Len(s, changes.Delete, 990)
	require.NoError(s, p.Apply(s.Context(), changes))
	s.holds(p, desired[:10]...)
}
