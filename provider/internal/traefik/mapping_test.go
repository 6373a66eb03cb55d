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

	"github.com/stretchr/testify/require"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/rules"
	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

var mappings = []traefik.Mapping{
	{Deployment: "webspaced"},
	{Deployment: "w", HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"},
	{Deployment: "w-2", HTTPSEntryPoint: "web_Secure", CertResolver: "le"},
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
	require.Nil(t, read.TLS)

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
			routers[host]++
			requireOneHost(t, router.Rule, "Host", host)
			require.Equal(t, service, router.Service)
			require.Equal(t, traefik.Priority, router.Priority)
		}
		require.True(t, *read.HTTP.Services[service].LoadBalancer.PassHostHeader)
	}
	require.Len(t, routers, len(r.Hosts))
	for _, host := range r.Hosts {
		require.NotZero(t, routers[host.String()], host.String())
	}
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
		}
	})
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
