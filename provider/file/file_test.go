package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"

	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
	"github.com/netsoc/webspaced/provider/providertest"
)

func TestProvider(t *testing.T) {
	kinds := map[string][]providertest.CertificateKind{
		"HTTPS":      {providertest.Resolver, providertest.PEM},
		"Challenges": {providertest.Resolver, providertest.PEM},
	}
	for name, opts := range map[string]file.Options{
		"HTTP":  {},
		"HTTPS": {HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"},
		"Challenges": {
			HTTPSEntryPoint: "websecure", CertResolver: "le", CertDomains: []string{"*.example.org", "example.org"},
			ChallengeURL: "http://gateway:8081",
		},
	} {
		t.Run(name, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Harness { return harness(t.TempDir(), opts, kinds[name]...) })
		})
	}
}

// nulls are files that have a name, and nothing after it.
var nulls = []string{
	"null",
	"http:",
	"http: {routers: , services: }",
	"http: {routers: {one.ws-u1.http.a.example.org: }}",
	"http: {services: {one.ws-u1: }}",
	"http: {services: {one.ws-u1: {loadBalancer: }}}",
	"http: {services: {one.ws-u1: {loadBalancer: {servers: }}}}",
	"http: {services: {one.ws-u1: {loadBalancer: {servers: [null]}}}}",
	"tcp:",
	"tcp: {routers: , services: }",
	"tcp: {routers: {one.ws-u1.tls.a.example.org: }}",
	"tcp: {services: {one.ws-u1: }}",
	"tcp: {services: {one.ws-u1: {loadBalancer: }}}",
	"tcp: {services: {one.ws-u1: {loadBalancer: {servers: }}}}",
	"tcp: {services: {one.ws-u1: {loadBalancer: {servers: [null]}}}}",
}

func harness(dir string, opts file.Options, certificates ...providertest.CertificateKind) providertest.Harness {
	rewrite := func(edit func([]byte) []byte) func(string, string) error {
		return func(deployment, route string) error {
			name := filepath.Join(dir, deployment+"."+route+".yml")
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(name, edit(content), 0o644)
		}
	}
	replace := func(old, with string) func(string, string) error {
		return rewrite(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(with)) })
	}
	damage := map[string]func(string, string) error{
		"backend edited":  replace("198.18.0.1", "198.18.0.66"),
		"host edited":     replace("a.example.org", "z.example.org"),
		"priority edited": replace("priority: 50", "priority: 1000"),
		"appended":        rewrite(func(b []byte) []byte { return append(b, "udp: {}\n"...) }),
		"torn":            rewrite(func(b []byte) []byte { return b[:len(b)/2] }),
		"torn mark":       rewrite(func(b []byte) []byte { return b[:10] }),
		"empty":           rewrite(func([]byte) []byte { return nil }),
		"no YAML":         rewrite(func(b []byte) []byte { return append(b, "\t{{ nonsense"...) }),
		"comment":         rewrite(func(b []byte) []byte { return append(b, "# hand made\n"...) }),
	}
	for _, null := range nulls {
		damage[null] = rewrite(func(b []byte) []byte {
			mark, _, _ := bytes.Cut(b, []byte("\n"))
			return append(mark, "\n"+null+"\n"...)
		})
	}
	foreign := map[string]string{
		"routes.yml":              "http: {routers: {mine: {rule: 'Host(`foreign.example.org`)', service: mine}}}\n",
		"one.yml":                 "# A route of the webspaced deployment one.\n",
		"one.ws-u1.yaml":          "# nothing\n",
		"one.ws-u1.yml.bak":       "",
		"one.ws-u1.x.yml":         "",
		"one.WS-U1.yml":           "",
		"two.ws-u1.yml":           "",
		"ones.ws-u1.yml":          "",
		"subdirectory/one.u1.yml": "",
	}
	return providertest.Harness{
		Open: func(deployment string) (provider.Provider, error) {
			opts := opts
			opts.Deployment = deployment
			return file.New(dir, &opts)
		},
		Lookup: func(host provider.Host) (string, error) { return lookup(dir, host.String()) },
		Damage: damage,
		WriteForeign: func(deployment, route string) error {
			if err := os.Mkdir(filepath.Join(dir, "subdirectory"), 0o755); err != nil {
				return err
			}
			foreign[deployment+"."+route+".yml"] = "http: {routers: {theirs: {rule: 'Host(`theirs.example.org`)', service: theirs}}}\n"
			for name, content := range foreign {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		ReadForeign: func() ([]byte, error) {
			var all []byte
			for _, name := range slices.Sorted(maps.Keys(foreign)) {
				content, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					return nil, err
				}
				all = fmt.Appendf(all, "%s: %s", name, content)
			}
			return all, nil
		},
		Certificates: certificates,
		HasCertificate: func(c provider.Certificate) (has bool, err error) {
			err = eachFile(dir, func(configuration *dynamic.Configuration) {
				has = has || traefiktest.HasCertificate(configuration, c)
			})
			return has, err
		},
	}
}

func lookup(dir, host string) (backend string, err error) {
	err = eachFile(dir, func(c *dynamic.Configuration) {
		if found := traefiktest.Backend(c, host); found != "" {
			backend = found
		}
	})
	return backend, err
}

// eachFile reads the directory as Traefik does: every file whose name ends in .yml, .yaml or .toml, below it, too, is a
// template, then a configuration; one bad file spoils all.
func eachFile(dir string, do func(*dynamic.Configuration)) error {
	return filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !slices.Contains([]string{".yml", ".yaml", ".toml"}, filepath.Ext(name)) {
			return err
		}
		c, err := read(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		do(c)
		return nil
	})
}

func read(name string) (*dynamic.Configuration, error) {
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) { // deleted since the directory was read
		return &dynamic.Configuration{}, nil
	} else if err != nil {
		return nil, err
	}
	tmpl, err := template.New("").Parse(string(content))
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := tmpl.Execute(&text, false); err != nil {
		return nil, err
	}
	c := &dynamic.Configuration{}
	return c, decoder.DecodeContent(text.String(), filepath.Ext(name), c)
}

func route(t testing.TB, name, backend string, hosts ...string) provider.Route {
	t.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(t, err)
		r.Hosts = append(r.Hosts, host)
	}
	require.NoError(t, r.Validate())
	return r
}

func put(routes ...provider.Route) provider.Changes { return provider.Changes{Put: routes} }

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for name, opts := range map[string]file.Options{
		"path in deployment":  {Deployment: "../x"},
		"dot in deployment":   {Deployment: "a.b"},
		"space in entrypoint": {HTTPEntryPoint: "we b"},
		"template":            {HTTPSEntryPoint: "{{x}}"},
		"provider suffix":     {HTTPSEntryPoint: "websecure", CertResolver: "le@file"},
		"resolver alone":      {CertResolver: "le"},
	} {
		_, err := file.New(dir, &opts)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
	_, err := file.New(filepath.Join(dir, "absent"), nil)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

func TestContent(t *testing.T) {
	dir := t.TempDir()
	p, err := file.New(dir, &file.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"})
	require.NoError(t, err)
	require.NoError(t, p.Apply(t.Context(), put(
		route(t, "ws-u1", "http://198.18.0.1:80", "alice.example.org"),
		route(t, "ws-u2", "tcp://[2001:db8::2]:443", "bob.example.org"))))

	content, err := os.ReadFile(filepath.Join(dir, "webspaced.ws-u1.yml"))
	require.NoError(t, err)
	require.Equal(t, "# A route of the webspaced deployment webspaced. Changes made by hand are overwritten.\n"+
		"http:\n"+
		"  routers:\n"+
		"    webspaced.ws-u1.http.alice.example.org:\n"+
		"      entryPoints:\n"+
		"        - web\n"+
		"      service: webspaced.ws-u1\n"+
		"      rule: Host(`alice.example.org`)\n"+
		"      priority: 50\n"+
		"    webspaced.ws-u1.https.alice.example.org:\n"+
		"      entryPoints:\n"+
		"        - websecure\n"+
		"      service: webspaced.ws-u1\n"+
		"      rule: Host(`alice.example.org`)\n"+
		"      priority: 50\n"+
		"      tls:\n"+
		"        certResolver: le\n"+
		"  services:\n"+
		"    webspaced.ws-u1:\n"+
		"      loadBalancer:\n"+
		"        servers:\n"+
		"          - url: http://198.18.0.1:80\n"+
		"        passHostHeader: true\n", string(content))
	content, err = os.ReadFile(filepath.Join(dir, "webspaced.ws-u2.yml"))
	require.NoError(t, err)
	require.Equal(t, "# A route of the webspaced deployment webspaced. Changes made by hand are overwritten.\n"+
		"tcp:\n"+
		"  routers:\n"+
		"    webspaced.ws-u2.tls.bob.example.org:\n"+
		"      entryPoints:\n"+
		"        - websecure\n"+
		"      service: webspaced.ws-u2\n"+
		"      rule: HostSNI(`bob.example.org`)\n"+
		"      priority: 50\n"+
		"      tls:\n"+
		"        passthrough: true\n"+
		"  services:\n"+
		"    webspaced.ws-u2:\n"+
		"      loadBalancer:\n"+
		"        servers:\n"+
		"          - address: '[2001:db8::2]:443'\n", string(content))
}
