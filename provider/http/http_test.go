package http_test

import (
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/http"
	"github.com/netsoc/webspaced/provider/providertest"
)

func TestProvider(t *testing.T) {
	for name, opts := range map[string]http.Options{
		"HTTP":  {},
		"HTTPS": {HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"},
	} {
		t.Run(name, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Harness { return harness(opts) })
		})
	}
}

// harness has a provider for each deployment: nobody else can write where it keeps its routes, and the process that it is
// in is all that has them.
func harness(opts http.Options) providertest.Harness {
	open := make(map[string]*http.Provider)
	return providertest.Harness{
		Private: true,
		Open: func(deployment string) (provider.Provider, error) {
			if p := open[deployment]; p != nil {
				return p, nil
			}
			opts := opts
			opts.Deployment = deployment
			p, err := http.New(&opts)
			open[deployment] = p
			return p, err
		},
		Lookup: func(host provider.Host) (string, error) {
			for _, p := range open {
				answer := get(p, "")
				if answer.StatusCode == nethttp.StatusServiceUnavailable {
					continue
				}
				c, err := decode(answer)
				if err != nil {
					return "", err
				}
				if backend := find(c, host.String()); backend != "" {
					return backend, nil
				}
			}
			return "", nil
		},
	}
}

func get(p *http.Provider, etag string) *nethttp.Response {
	r := httptest.NewRequest("GET", "/", nil)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

// decode reads an answer as Traefik does.
func decode(answer *nethttp.Response) (*dynamic.Configuration, error) {
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != nethttp.StatusOK {
		return nil, fmt.Errorf("status %d, error %v", answer.StatusCode, err)
	}
	var c dynamic.Configuration
	return &c, decoder.DecodeContent(string(body), ".yaml", &c)
}

func find(c *dynamic.Configuration, host string) string {
	if c.HTTP != nil {
		for _, r := range c.HTTP.Routers {
			if r.Rule == "Host(`"+host+"`)" {
				return c.HTTP.Services[r.Service].LoadBalancer.Servers[0].URL
			}
		}
	}
	if c.TCP != nil {
		for _, r := range c.TCP.Routers {
			if r.Rule == "HostSNI(`"+host+"`)" {
				return "tcp://" + c.TCP.Services[r.Service].LoadBalancer.Servers[0].Address
			}
		}
	}
	return ""
}

func route(t testing.TB, name, backend, host string) provider.Route {
	t.Helper()
	h, err := provider.ParseHost(host)
	require.NoError(t, err)
	return provider.Route{Name: name, Backend: backend, Hosts: []provider.Host{h}}
}

func put(t testing.TB, p *http.Provider, routes ...provider.Route) {
	t.Helper()
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: routes}))
}

// An answer that says less than there is takes sites away: there is none before all is known, and never an empty one.
func TestNeverEmptyByAccident(t *testing.T) {
	p, err := http.New(nil)
	require.NoError(t, err)
	answer := get(p, "")
	require.Equal(t, nethttp.StatusServiceUnavailable, answer.StatusCode)
	require.NotEmpty(t, answer.Header.Get("Retry-After"))

	require.NoError(t, p.Apply(t.Context(), provider.Changes{}))
	c, err := decode(get(p, ""))
	require.NoError(t, err)
	require.Len(t, c.HTTP.Middlewares, 1, "something is there, so that Traefik takes it")
	require.Empty(t, c.HTTP.Routers)

	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	put(t, p, a)
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}))
	c, err = decode(get(p, ""))
	require.NoError(t, err)
	require.Len(t, c.HTTP.Middlewares, 1)
	require.Empty(t, c.HTTP.Routers)
}

func TestETag(t *testing.T) {
	p, err := http.New(nil)
	require.NoError(t, err)
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	put(t, p, a)
	first := get(p, "")
	require.Equal(t, nethttp.StatusOK, first.StatusCode)
	require.Equal(t, "application/json", first.Header.Get("Content-Type"))
	etag := first.Header.Get("ETag")
	put(t, p, a)
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u9"}}))
	same := get(p, etag)
	require.Equal(t, nethttp.StatusNotModified, same.StatusCode)
	body, err := io.ReadAll(same.Body)
	require.NoError(t, err)
	require.Empty(t, body)
	put(t, p, route(t, "ws-u1", "http://198.18.0.2:80", "a.example.org"))
	require.Equal(t, nethttp.StatusOK, get(p, etag).StatusCode)
	put(t, p, a)
	require.Equal(t, etag, get(p, "").Header.Get("ETag"), "it follows from the routes alone")

	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader("{}")))
	require.Equal(t, nethttp.StatusMethodNotAllowed, w.Code)
	w = httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("HEAD", "/", nil))
	require.Equal(t, nethttp.StatusOK, w.Code)
	require.Empty(t, w.Body.Bytes())
}

func TestOptions(t *testing.T) {
	for _, bad := range []http.Options{
		{Deployment: "a.b"}, {HTTPEntryPoint: "`"}, {HTTPSEntryPoint: "a b"}, {CertResolver: "le"},
		{CertDomains: []string{"example.org"}}, {ChallengeURL: "gateway"},
	} {
		_, err := http.New(&bad)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%+v: %v", bad, err)
	}
}

func BenchmarkSync(b *testing.B) {
	const many = 10_000
	routes := make([]provider.Route, many)
	for i := range routes {
		routes[i] = route(b, fmt.Sprint("ws-u", i), fmt.Sprintf("http://198.18.%d.%d:80", i/250, i%250+1), fmt.Sprintf("u%d.example.org", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		p, err := http.New(nil)
		require.NoError(b, err)
		put(b, p, routes...)
		require.Equal(b, nethttp.StatusOK, get(p, "").StatusCode)
	}
}
