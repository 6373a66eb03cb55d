package traefik_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/rules"
	"github.com/traefik/traefik/v2/pkg/types"
	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

var mappings = []traefik.Mapping{
	{Deployment: "webspaced"},
	{Deployment: "w", HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"},
	{Deployment: "w-2", HTTPSEntryPoint: "web_Secure", CertResolver: "le"},
	{
		Deployment: "w-3", HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le",
		CertDomains: []string{"alice.example.org", "*.alice.example.org"}, ChallengeURL: "http://gateway:8081",
	},
	{Deployment: "w-4", HTTPSEntryPoint: "websecure", CertResolver: "le", CertDomains: []string{"*.example.org"}},
}

// withCertificates gives the hosts of a route certificates of the kinds that Traefik's configuration has: none for the
// first, then by turns.
func withCertificates(r provider.Route) provider.Route {
	for i, host := range r.Hosts {
		c := provider.Certificate{Host: host}
		switch i % 3 {
		case 0:
			continue
		case 1:
			c.Resolver = "own"
		case 2:
			c.Chain = fmt.Sprintf("-----BEGIN CERTIFICATE-----\r\nMII+/%d==\n-----END CERTIFICATE-----\n", i)
			c.Key = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n"
		}
		r.Certificates = append(r.Certificates, c)
	}
	return r
}

func route(t testing.TB, backend string, hosts ...string) provider.Route {
	t.Helper()
	r := provider.Route{Name: "ws-u1", Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(t, err)
		r.Hosts = append(r.Hosts, host)
	}
	slices.SortFunc(r.Hosts, provider.Host.Compare)
	require.NoError(t, r.Validate())
	return r
}

// decode encodes c and reads it as Traefik does.
func decode(t testing.TB, c *dynamic.Configuration) *dynamic.Configuration {
	t.Helper()
	text, err := yaml.Marshal(c)
	require.NoError(t, err)
	require.NotContains(t, string(text), "{{")
	read := &dynamic.Configuration{}
	require.NoError(t, decoder.DecodeContent(string(text), ".yml", read))
	// Traefik's defaults are filled in where nothing is said.
	if read.HTTP != nil {
		for _, s := range read.HTTP.Services {
			require.Equal(t, "http", s.LoadBalancer.Servers[0].Scheme)
			s.LoadBalancer.Servers[0].Scheme = ""
		}
	}
	if read.TCP != nil {
		for _, s := range read.TCP.Services {
			require.Equal(t, 100, *s.LoadBalancer.TerminationDelay)
			s.LoadBalancer.TerminationDelay = nil
		}
	}
	return read
}

// requireOneHost requires that Traefik's parser reads rule as one matcher with one value.
func requireOneHost(t testing.TB, rule, matcher, host string) {
	t.Helper()
	parser, err := rules.NewParser([]string{
		"Host", "HostHeader", "HostRegexp", "HostSNI", "HostSNIRegexp", "Path", "PathPrefix", "Method", "Headers",
		"HeadersRegexp", "Query", "ClientIP", "ALPN",
	})
	require.NoError(t, err)
	parsed, err := parser.Parse(rule)
	require.NoError(t, err, rule)
	tree := parsed.(rules.TreeBuilder)()
	require.Equal(t, &rules.Tree{Matcher: matcher, Value: []string{host}}, tree)
}

// requireExact requires that Traefik reads what m says of r as just that: for each host one rule with nothing else in
// it, all to the one backend.
func requireExact(t testing.TB, m traefik.Mapping, r provider.Route) {
	t.Helper()
	said := m.Configuration(r)
	read := decode(t, said)
	require.Equal(t, said, read)
	require.True(t, r.Equal(m.Route(r.Name, read)), "%v is read as %v", r, m.Route(r.Name, read))
	require.Nil(t, read.UDP)
	requireCertificates(t, read, r.Certificates)

	routers := map[string]int{}
	service := m.Deployment + "." + r.Name
	if strings.HasPrefix(r.Backend, "tcp://") {
		require.Nil(t, read.HTTP)
		for _, router := range read.TCP.Routers {
			host := hostOf(router.Rule)
			routers[host]++
			requireOneHost(t, router.Rule, "HostSNI", host)
			require.Equal(t, service, router.Service)
			require.Equal(t, traefik.Priority, router.Priority)
			require.True(t, router.TLS.Passthrough)
		}
	} else {
		require.Nil(t, read.TCP)
		for _, router := range read.HTTP.Routers {
			host := hostOf(router.Rule)
			if router.Service == service+".acme" {
				requireChallenge(t, router, host)
				continue
			}
			routers[host]++
			requireOneHost(t, router.Rule, "Host", host)
			require.Equal(t, service, router.Service)
			require.Equal(t, traefik.Priority, router.Priority)
			if router.TLS != nil {
				requireTLS(t, m, router.TLS, r, host)
			}
		}
		if s := read.HTTP.Services[service+".acme"]; m.ChallengeURL != "" {
			require.Equal(t, m.ChallengeURL, s.LoadBalancer.Servers[0].URL)
		} else {
			require.Nil(t, s)
		}
		require.True(t, *read.HTTP.Services[service].LoadBalancer.PassHostHeader)
	}
	require.Len(t, routers, len(r.Hosts))
	for _, host := range r.Hosts {
		require.NotZero(t, routers[host.String()], host.String())
	}
}

// requireCertificates requires that just the certificates with a chain are in a configuration, for whoever asks for them.
func requireCertificates(t testing.TB, c *dynamic.Configuration, want []provider.Certificate) {
	t.Helper()
	want = slices.DeleteFunc(slices.Clone(want), func(c provider.Certificate) bool { return c.Chain == "" })
	if len(want) == 0 {
		require.Nil(t, c.TLS)
		return
	}
	require.Len(t, c.TLS.Certificates, len(want))
	for i, have := range c.TLS.Certificates {
		require.Equal(t, want[i].Chain, string(have.CertFile))
		require.Equal(t, string(want[i].Key), string(have.KeyFile))
		require.Empty(t, have.Stores)
	}
	require.Empty(t, c.TLS.Stores)
	require.Empty(t, c.TLS.Options)
}

// requireTLS requires that a host's certificate is obtained by whom it should be, if by anybody.
func requireTLS(t testing.TB, m traefik.Mapping, have *dynamic.RouterTLSConfig, r provider.Route, host string) {
	t.Helper()
	parsed, err := provider.ParseHost(host)
	require.NoError(t, err)
	own := r.Certificate(parsed)
	switch {
	case own.Chain != "":
		require.Empty(t, have.CertResolver)
	case own.Resolver != "":
		require.Equal(t, own.Resolver, have.CertResolver)
		require.Equal(t, []types.Domain{{Main: host}}, have.Domains)
	case len(m.CertDomains) > 0:
		require.Equal(t, m.CertResolver, have.CertResolver)
		require.Len(t, have.Domains, 1)
		require.Equal(t, m.CertDomains, have.Domains[0].ToStrArray())
	default:
		require.Equal(t, m.CertResolver, have.CertResolver)
		require.Empty(t, have.Domains)
	}
	require.Empty(t, have.Options)
}

// requireChallenge requires that a router takes the challenges of one host, before all else.
func requireChallenge(t testing.TB, router *dynamic.Router, host string) {
	t.Helper()
	require.Equal(t, traefik.Priority+1, router.Priority)
	require.Nil(t, router.TLS)
	first, second, ok := strings.Cut(router.Rule, " && ")
	require.True(t, ok)
	requireOneHost(t, first, "Host", host)
	requireOneHost(t, second, "PathPrefix", "/.well-known/acme-challenge/")
}

func hostOf(rule string) string { return strings.Split(rule, "`")[1] }

func TestConfiguration(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, m := range mappings {
		require.NoError(t, m.Validate())
		for _, backend := range []string{
			"http://198.18.0.1:80", "http://[2001:db8::1]:8080", "http://gateway:8081", "https://gateway.example.org:443",
			"tcp://198.18.0.1:443", "tcp://[2001:db8::1]:443",
		} {
			requireExact(t, m, route(t, backend, "alice.example.org"))
			requireExact(t, m, route(t, backend, "http.alice.example", "https.http.alice.example", "tls.alice.example"))
			requireExact(t, m, route(t, backend, "true.no", "0.example", "1e3.example", "null.example", "xn--bcher-kva.example"))
			requireExact(t, m, route(t, backend, strings.Join([]string{long, long, long, long[:61]}, ".")))
			if m.HTTPSEntryPoint != "" && !strings.HasPrefix(backend, "tcp://") {
				requireExact(t, m, withCertificates(route(t, backend, "alice.example.org", "alice.example", "www.alice.example", "z.a", "z.a-b.c", "z.z")))
			}
		}
	}
}

// TestNames: what is served under one name must be one thing, or Traefik drops all but the first of them.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, deployment := range []string{"web", "web-a", "a", "http"} {
		for _, name := range []string{"a", "a-http", "web-a", "http", "tls"} {
			for _, backend := range []string{"http://198.18.0.1:80", "tcp://198.18.0.1:80"} {
				r := route(t, backend, "a.http.tls", "http.a.http.tls", "https.a.http.tls")
				r.Name = name
				c := traefik.Mapping{Deployment: deployment, HTTPSEntryPoint: "s"}.Configuration(r)
				var names []string
				if c.HTTP != nil {
					for router := range c.HTTP.Routers {
						names = append(names, "http "+router)
					}
				} else {
					for router := range c.TCP.Routers {
						names = append(names, "tcp "+router)
					}
				}
				for _, router := range names {
					require.Empty(t, seen[router], router)
					seen[router] = fmt.Sprint(deployment, "/", name)
				}
			}
		}
	}
}

// sorted returns a host with others beside it.
func sorted(t testing.TB, host provider.Host, others ...string) []provider.Host {
	hosts := append(route(t, "http://198.18.0.1:80", others...).Hosts, host)
	slices.SortFunc(hosts, provider.Host.Compare)
	return slices.Compact(hosts)
}

// FuzzRule: whatever ParseHost accepts is one host for Traefik, and nothing else.
func FuzzRule(f *testing.F) {
	for _, seed := range []string{
		"alice.example.org", "ALICE.example.ORG.", "*.example.org", "x.test`) || HostRegexp(`.*", "{{ env `HOME` }}.org",
		"a.b\n", "xn--80ak6aa92e.com", "1.2.3.0x4", "a..b", "{host}.org", "\u212a.org", "true.null", "- a.b", "a.b: c", "!!int.1e3",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := provider.ParseHost(s)
		if err != nil {
			return
		}
		for _, m := range mappings {
			for _, backend := range []string{"http://198.18.0.1:80", "tcp://198.18.0.1:443"} {
				requireExact(t, m, provider.Route{Name: "ws-u1", Hosts: []provider.Host{host}, Backend: backend})
			}
			if m.HTTPSEntryPoint != "" {
				requireExact(t, m, withCertificates(provider.Route{
					Name: "ws-u1", Hosts: sorted(t, host, "a.example", "z.example"), Backend: "http://198.18.0.1:80",
				}))
			}
		}
	})
}

// FuzzCertificate: whatever Validate accepts is that certificate for Traefik, and nothing else.
func FuzzCertificate(f *testing.F) {
	const chain, key = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----\n"
	f.Add("", chain, key)
	f.Add("", chain+chain, strings.ReplaceAll(key, "\n", "\r\n"))
	f.Add("", "-----BEGIN {{ env `HOME` }}", key)
	f.Add("", "-----BEGIN \n \n- a\n\r", "-----BEGIN  \n\n")
	f.Add("le", "", "")
	f.Add("true", "", "")
	f.Add("1e3", "", "")
	f.Add("le@file", "", "")
	f.Add("", "/etc/passwd", "/etc/shadow")
	f.Fuzz(func(t *testing.T, resolver, chain, key string) {
		r := route(t, "http://198.18.0.1:80", "alice.example.org", "bob.example.org")
		c := provider.Certificate{Host: r.Hosts[0], Resolver: resolver, Chain: chain, Key: provider.PrivateKey(key)}
		if c.Validate() != nil {
			return
		}
		r.Certificates = []provider.Certificate{c}
		for _, m := range mappings {
			if m.HTTPSEntryPoint != "" {
				require.NoError(t, m.Check(r))
				requireExact(t, m, r)
			}
		}
	})
}

func TestCheck(t *testing.T) {
	r := withCertificates(route(t, "http://198.18.0.1:80", "a.example", "b.example", "c.example"))
	require.NoError(t, traefik.Mapping{Deployment: "w", HTTPSEntryPoint: "websecure"}.Check(r))
	require.True(t, errdefs.IsInvalidArgument(traefik.Mapping{Deployment: "w"}.Check(r)))
	r.Certificates = []provider.Certificate{{Host: r.Hosts[0], Secret: "alice"}}
	require.True(t, errdefs.IsInvalidArgument(traefik.Mapping{Deployment: "w", HTTPSEntryPoint: "websecure"}.Check(r)))
}

func TestValidate(t *testing.T) {
	for what, m := range map[string]traefik.Mapping{
		"no deployment":             {},
		"resolver alone":            {Deployment: "w", CertResolver: "le"},
		"domains alone":             {Deployment: "w", HTTPSEntryPoint: "s", CertDomains: []string{"*.example.org"}},
		"one host for all":          {Deployment: "w", HTTPSEntryPoint: "s", CertResolver: "le", CertDomains: []string{"example.org"}},
		"template in a domain":      {Deployment: "w", HTTPSEntryPoint: "s", CertResolver: "le", CertDomains: []string{"*.{{.}}.org"}},
		"list in a domain":          {Deployment: "w", HTTPSEntryPoint: "s", CertResolver: "le", CertDomains: []string{"*.a.org,b.org"}},
		"two wildcards in a domain": {Deployment: "w", HTTPSEntryPoint: "s", CertResolver: "le", CertDomains: []string{"*.*.org"}},
		"path in the challenge URL": {Deployment: "w", ChallengeURL: "http://gateway:8081/x"},
		"entry point":               {Deployment: "w", HTTPEntryPoint: "web,websecure"},
	} {
		require.Truef(t, errdefs.IsInvalidArgument(m.Validate()), "%s: %v", what, m.Validate())
	}
}

// TestRulesAreBuiltInOnePlace: text that looks like a rule stands nowhere else in the repository's programs.
func TestRulesAreBuiltInOnePlace(t *testing.T) {
	root, err := filepath.Abs("../../..")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "go.mod"))
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		if err == nil && (bytes.Contains(text, []byte("Host(`")) || bytes.Contains(text, []byte("HostSNI(`"))) {
			t.Errorf("%s builds a rule of its own", name)
		}
		return err
	})
	require.NoError(t, err)
}

// What Traefik makes of cert-manager's Ingress for a challenge has its length as priority.
func TestPriorityIsBelowChallenges(t *testing.T) {
	token := strings.Repeat("x", 43) // RFC 8555 wants 128 bits at least; this is what authorities send
	require.Less(t, traefik.Priority, len("Host(`t.co`) && Path(`/.well-known/acme-challenge/"+token+"`)"))
	require.Greater(t, traefik.Priority, len("HostRegexp(`^.+\\.example\\.org$`)"))
}
