// Package traefiktest tells whether real Traefiks, of each version that is supported, serve what a route provider writes.
// Only tests import it.
package traefiktest

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
)

// Store is where a provider keeps routes and Traefik reads them.
type Store struct {
	// Flags have Traefik follow the store.
	Flags []string
	// Open returns a new provider on the store, as a daemon does when it starts. Its entry points are called "web" and
	// "websecure", ACME's challenges go to challengeURL, and it knows no certificate resolver.
	Open func(challengeURL string) (provider.Provider, error)
	// Backends is the IP address that backends listen at; empty: one of the loopback.
	Backends string
	// NoChallenges says that whoever obtains the certificates answers ACME's challenges without us.
	NoChallenges bool
	// Certificate puts a certificate where a route can refer to it. Nil: the route has it itself.
	Certificate func(host provider.Host, chain string, key provider.PrivateKey) (provider.Certificate, error)
	// Poison writes something of others' beside the routes that Traefik can not read; Cure removes it. Both are nil where
	// nobody else can write.
	Poison, Cure func() error
	// Away ends what serves the store, Back starts it again: with what it had, or empty. Both are nil for one that needs
	// nobody to serve it.
	Away, Back func()
}

// Run checks a provider with each Traefik. newStore is called for each subtest and returns an empty store; what it needs to
// clean up goes to t.Cleanup.
func Run(t *testing.T, newStore func(t *testing.T, version testbed.TraefikVersion) Store) {
	for _, version := range []testbed.TraefikVersion{testbed.TraefikV3, testbed.TraefikV2} {
		t.Run(string(version), func(t *testing.T) {
			for _, test := range []struct {
				name string
				run  func(*suite)
			}{
				{"Serves", (*suite).serves},
				{"SwitchesUnderLoad", (*suite).switchesUnderLoad},
				{"PassesTLSThrough", (*suite).passesTLSThrough},
				{"Certificates", (*suite).certificates},
				{"Challenges", (*suite).challenges},
				{"TraefikRestarts", (*suite).traefikRestarts},
				{"StoreRestarts", (*suite).storeRestarts},
				{"Poison", (*suite).poison},
				{"Spellings", (*suite).spellings},
			} {
				t.Run(test.name, func(t *testing.T) {
					test.run(newSuite(t, version, newStore(t, version)))
				})
			}
		})
	}
}

// Benchmark measures the time from a change of a route to the changed answer of each Traefik, alone and among many.
func Benchmark(b *testing.B, newStore func(b *testing.B, version testbed.TraefikVersion) Store) {
	for _, version := range []testbed.TraefikVersion{testbed.TraefikV3, testbed.TraefikV2} {
		for _, others := range []int{0, 1000} {
			b.Run(fmt.Sprintf("%s/others=%d", version, others), func(b *testing.B) {
				s := newSuite(b, version, newStore(b, version))
				const host = "alice.example.org"
				names := [...]string{"instance", "gateway"}
				routes := [len(names)]provider.Route{s.route("ws-u1", s.backend(names[0]), host), s.route("ws-u1", s.backend(names[1]), host)}
				all := []provider.Route{routes[1]}
				for i := range others {
					all = append(all, s.route(fmt.Sprint("ws-other", i), "http://127.0.0.1:1", fmt.Sprintf("u%d.example.org", i)))
				}
				s.put(all...)
				s.answers(host, names[1]+" "+host)
				turn := 0
				for b.Loop() {
					s.put(routes[turn])
					s.answers(host, names[turn]+" "+host)
					turn = 1 - turn
				}
			})
		}
	}
}

// suite is one subtest: a store, a provider on it, and a Traefik that follows it.
type suite struct {
	testing.TB
	Store
	provider  provider.Provider
	traefik   *testbed.Proxy
	visitor   *http.Client
	challenge string // URL
}

func newSuite(t testing.TB, version testbed.TraefikVersion, store Store) *suite {
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	s := &suite{TB: t, Store: store, visitor: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	s.challenge = s.backend("challenge")
	s.provider = s.open()
	s.traefik = version.Start(t, append(slices.Clone(store.Flags), "--providers.providersthrottleduration=10ms")...)
	return s
}

func (s *suite) open() provider.Provider {
	s.Helper()
	p, err := s.Open(s.challenge)
	require.NoError(s, err)
	_, err = p.Routes(s.Context()) // as a daemon begins
	require.NoError(s, err)
	return p
}

func (s *suite) put(routes ...provider.Route) {
	s.Helper()
	require.NoError(s, s.provider.Apply(s.Context(), provider.Changes{Put: routes}))
}

func (s *suite) remove(names ...string) {
	s.Helper()
	require.NoError(s, s.provider.Apply(s.Context(), provider.Changes{Delete: names}))
}

const notFound = "404 Not Found"

func (s *suite) serves() {
	s.answers("alice.example.org", notFound)
	a, b := s.backend("a"), s.backend("b")
	s.put(s.route("ws-u1", a, "alice.example.org", "www.alice.example"), s.route("ws-u2", b, "bob.example.org"))
	s.answers("alice.example.org", "a alice.example.org")
	s.answers("www.alice.example", "a www.alice.example")
	s.answers("bob.example.org", "b bob.example.org")
	s.answers("carol.example.org", notFound)
	s.eventually("TLS to alice.example.org", func() (string, string) {
		answer, _ := s.secure("alice.example.org", nil)
		return answer, "a alice.example.org"
	})

	// A stopped webspace's route points at the gateway, another host comes, one goes.
	s.put(s.route("ws-u1", b, "alice.example.net", "alice.example.org"))
	s.answers("alice.example.org", "b alice.example.org")
	s.answers("alice.example.net", "b alice.example.net")
	s.answers("www.alice.example", notFound)

	s.remove("ws-u1")
	s.answers("alice.example.org", notFound)
	s.answers("bob.example.org", "b bob.example.org")
	// Deleting the very last one counts, too.
	s.remove("ws-u2")
	s.answers("bob.example.org", notFound)
	s.put(s.route("ws-u2", a, "bob.example.org"))
	s.answers("bob.example.org", "a bob.example.org")
}

// switchesUnderLoad moves a route to and fro while it is asked for all the time: no request fails.
func (s *suite) switchesUnderLoad() {
	const host, switches = "alice.example.org", 50
	names := [...]string{"instance", "gateway"}
	var routes [len(names)]provider.Route
	for i, name := range names {
		routes[i] = s.route("ws-u1", s.backend(name), host)
	}
	s.put(routes[0])
	s.answers(host, "instance "+host)

	load, stop := context.WithCancel(s.Context())
	defer stop()
	var visitors sync.WaitGroup
	var requests atomic.Int64
	for range 4 {
		visitors.Go(func() {
			for load.Err() == nil {
				if who := s.get(host); who != "instance "+host && who != "gateway "+host {
					s.Errorf("request %d is answered by %q", requests.Load(), who)
					return
				}
				requests.Add(1)
			}
		})
	}
	for i := 1; i <= switches && !s.Failed(); i++ {
		if err := s.provider.Apply(s.Context(), provider.Changes{Put: routes[i%2 : i%2+1]}); err != nil {
			s.Errorf("switch %d: %v", i, err)
		}
		s.answers(host, names[i%2]+" "+host)
	}
	stop()
	visitors.Wait()
	require.Greater(s, requests.Load(), int64(switches))
	s.Logf("%d switches, %d requests", switches, requests.Load())
}

func (s *suite) passesTLSThrough() {
	const alice, bob = "alice.example.org", "bob.example.org"
	own := testbed.NewCA(s.TB, "the webspace's own")
	tcp := s.tlsBackend("a", own.Issue(alice))
	s.put(s.route("ws-u1", tcp, alice), s.route("ws-u2", s.backend("b"), bob))
	s.servesTLS(alice, own, "a "+alice)
	s.answers(bob, "b "+bob)
	s.eventually("TLS to "+bob, func() (string, string) {
		answer, issuer := s.secure(bob, nil)
		return answer + " by " + issuer, "b " + bob + " by " + defaultIssuer
	})
	// Its owner changes their mind, twice.
	s.put(s.route("ws-u1", s.backend("plain"), alice))
	s.answers(alice, "plain "+alice)
	s.put(s.route("ws-u1", tcp, alice))
	s.servesTLS(alice, own, "a "+alice)
	s.remove("ws-u1")
	s.eventually("TLS to "+alice, func() (string, string) {
		answer, _ := s.secure(alice, nil)
		return answer, notFound
	})
}

func (s *suite) certificates() {
	const inside, custom, other = "alice.example.org", "alice.example", "www.alice.example"
	first, second := testbed.NewCA(s.TB, "first"), testbed.NewCA(s.TB, "second")
	a := s.route("ws-u1", s.backend("a"), custom, inside, other)
	a.Certificates = []provider.Certificate{s.certificate(first, custom), s.certificate(second, other)}
	bob := s.route("ws-u2", s.backend("b"), "bob.example")
	bob.Certificates = []provider.Certificate{s.certificate(second, "bob.example")}
	s.put(a, bob)
	s.servesTLS(custom, first, "a "+custom)
	s.servesTLS(other, second, "a "+other)
	s.servesTLS("bob.example", second, "b bob.example")
	s.issuedBy(inside, defaultIssuer)

	// One is renewed, and those of others stay.
	a.Certificates = []provider.Certificate{s.certificate(second, custom), a.Certificates[1]}
	s.put(a)
	s.servesTLS(custom, second, "a "+custom)
	s.servesTLS("bob.example", second, "b bob.example")

	// The instance stops: its certificates outlive that.
	a.Backend = s.backend("gateway")
	s.put(a)
	s.servesTLS(custom, second, "gateway "+custom)

	a.Certificates = a.Certificates[1:]
	s.put(a)
	s.issuedBy(custom, defaultIssuer)
	s.servesTLS(other, second, "gateway "+other)
	s.remove("ws-u1")
	s.issuedBy(other, defaultIssuer)
	s.servesTLS("bob.example", second, "b bob.example")
}

// challenges go where they are asked to, from all hosts, and nothing else does.
func (s *suite) challenges() {
	if s.NoChallenges {
		s.Skip("challenges are no business of this provider")
	}
	const host, path = "alice.example.org", "/.well-known/acme-challenge/token"
	s.put(s.route("ws-u1", s.backend("a"), host), s.route("ws-u2", s.backend("b"), "bob.example.org"))
	for _, h := range []string{host, "bob.example.org"} {
		s.eventually("the challenge of "+h, func() (string, string) { return s.getPath(h, path), "challenge " + h })
	}
	s.answers(host, "a "+host)
	for _, other := range []string{"/.well-known/", "/.well-known/acme-challenge", "/x/.well-known/acme-challenge/token", "/?/.well-known/acme-challenge/"} {
		require.Equal(s, "a "+host, s.getPath(host, other), other)
	}
	require.Equal(s, notFound, s.getPath("carol.example.org", path))
}

// traefikRestarts has Traefik killed and started again before and after changes: it serves what the store has.
func (s *suite) traefikRestarts() {
	s.put(s.route("ws-u1", s.backend("a"), "alice.example.org"))
	s.answers("alice.example.org", "a alice.example.org")
	s.traefik.Restart(s)
	s.answers("alice.example.org", "a alice.example.org")

	s.traefik.Kill()
	s.put(s.route("ws-u2", s.backend("b"), "bob.example.org"))
	s.remove("ws-u1")
	s.traefik.Restart(s)
	s.answers("bob.example.org", "b bob.example.org")
	s.answers("alice.example.org", notFound)
	s.put(s.route("ws-u1", s.backend("c"), "alice.example.org"))
	s.answers("alice.example.org", "c alice.example.org")
}

// storeRestarts has the store go away: what stood is served on. When it is back, empty even, all is as it should be after
// one synchronisation, and changes are followed.
func (s *suite) storeRestarts() {
	if s.Away == nil {
		s.Skip("nothing serves this store")
	}
	alice, bob := s.route("ws-u1", s.backend("a"), "alice.example.org"), s.route("ws-u2", s.backend("b"), "bob.example.org")
	s.put(alice, bob)
	s.answers("alice.example.org", "a alice.example.org")
	s.answers("bob.example.org", "b bob.example.org")
	s.Away()
	require.Error(s, s.provider.Apply(s.Context(), provider.Changes{Put: []provider.Route{s.route("ws-u3", alice.Backend, "carol.example.org")}}))
	for range 20 {
		require.Equal(s, "a alice.example.org", s.get("alice.example.org"))
	}
	s.Back()
	current, err := s.provider.Routes(s.Context())
	require.NoError(s, err)
	moved := s.route("ws-u1", s.backend("moved"), "alice.example.org")
	require.NoError(s, s.provider.Apply(s.Context(), provider.Plan([]provider.Route{moved, bob}, current)))
	s.answers("alice.example.org", "moved alice.example.org")
	s.answers("bob.example.org", "b bob.example.org")
	s.put(s.route("ws-u3", s.backend("c"), "carol.example.org"))
	s.answers("carol.example.org", "c carol.example.org")
	s.remove("ws-u1", "ws-u2", "ws-u3")
	s.answers("bob.example.org", notFound)
}

// poison of somebody keeps Traefik from taking anything over, which no provider can help. What stood is served on, and what
// came meanwhile is once it is gone. Nobody removes it but who wrote it.
func (s *suite) poison() {
	if s.Poison == nil {
		s.Skip("nobody else can write to this store")
	}
	s.put(s.route("ws-u1", s.backend("a"), "alice.example.org"))
	s.answers("alice.example.org", "a alice.example.org")
	require.NoError(s, s.Poison())
	_, err := s.provider.Routes(s.Context())
	require.NoError(s, err)
	s.put(s.route("ws-u2", s.backend("b"), "bob.example.org"))
	for range 20 {
		require.Equal(s, "a alice.example.org", s.get("alice.example.org"))
	}
	require.NoError(s, s.Cure())
	s.answers("bob.example.org", "b bob.example.org")
	s.answers("alice.example.org", "a alice.example.org")
}

func (s *suite) certificate(ca *testbed.CA, host string) provider.Certificate {
	s.Helper()
	h, err := provider.ParseHost(host)
	require.NoError(s, err)
	chain, key := testbed.EncodePEM(s.TB, ca.Issue(host))
	if s.Certificate == nil {
		return provider.Certificate{Host: h, Chain: chain, Key: provider.PrivateKey(key)}
	}
	c, err := s.Certificate(h, chain, provider.PrivateKey(key))
	require.NoError(s, err)
	return c
}

// servesTLS requires that in the end a visitor who trusts nobody but ca gets this answer from a host.
func (s *suite) servesTLS(host string, ca *testbed.CA, want string) {
	s.Helper()
	s.eventually("TLS to "+host, func() (string, string) {
		answer, _ := s.secure(host, ca)
		return answer, want
	})
}

func (s *suite) issuedBy(host, want string) {
	s.Helper()
	s.eventually("the issuer of "+host, func() (string, string) {
		_, issuer := s.secure(host, nil)
		return issuer, want
	})
}

// defaultIssuer is who issues certificates for hosts that have none: Traefik itself.
const defaultIssuer = "TRAEFIK DEFAULT CERT"

// secure asks for a host over TLS. With an authority, only its certificates are trusted.
func (s *suite) secure(host string, ca *testbed.CA) (answer, issuer string) {
	config := &tls.Config{ServerName: host, InsecureSkipVerify: ca == nil}
	if ca != nil {
		config.RootCAs = ca.Pool
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   config,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.traefik.Secure)
		},
	}}
	request, err := http.NewRequestWithContext(s.Context(), http.MethodGet, "https://"+host+"/", nil)
	require.NoError(s, err)
	response, err := client.Do(request)
	if err != nil {
		return fmt.Sprint("error: ", err), ""
	}
	return read(response), response.TLS.PeerCertificates[0].Issuer.CommonName
}
