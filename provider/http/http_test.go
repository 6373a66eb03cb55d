package http_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	web "github.com/netsoc/webspaced/provider/http"
	"github.com/netsoc/webspaced/provider/providertest"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// open returns a provider that has been told that there are no routes yet.
func open(opts *web.Options) (*web.Provider, error) {
	p, err := web.New(opts)
	if err == nil {
		err = p.Apply(context.Background(), provider.Changes{})
	}
	return p, err
}

func TestProvider(t *testing.T) {
	kinds := map[string][]providertest.CertificateKind{"HTTPS": {providertest.Resolver, providertest.PEM}}
	for name, opts := range map[string]web.Options{
		"HTTP": {},
		"HTTPS": {
			HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le", CertDomains: []string{"*.example.org"},
			ChallengeURL: "http://gateway:8081",
		},
	} {
		t.Run(name, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Harness { return harness(opts, kinds[name]...) })
		})
	}
}

// harness has one provider for each deployment: what it holds is its own, so that opening it again is the same one.
func harness(opts web.Options, certificates ...providertest.CertificateKind) providertest.Harness {
	var mu sync.Mutex
	opened := map[string]*web.Provider{}
	get := func(deployment string) (*web.Provider, error) {
		mu.Lock()
		defer mu.Unlock()
		if opened[deployment] == nil {
			opts := opts
			opts.Deployment = deployment
			p, err := open(&opts)
			if err != nil {
				return nil, err
			}
			opened[deployment] = p
		}
		return opened[deployment], nil
	}
	return providertest.Harness{
		Open: func(deployment string) (provider.Provider, error) { return get(deployment) },
		Lookup: func(host provider.Host) (string, error) {
			mu.Lock()
			var all []*web.Provider
			for _, p := range opened {
				all = append(all, p)
			}
			mu.Unlock()
			for _, p := range all {
				c, err := decode(ask(p, nil))
				if backend := traefiktest.Backend(c, host.String()); err != nil || backend != "" {
					return backend, err
				}
			}
			return "", nil
		},
		Private:      true,
		Certificates: certificates,
		HasCertificate: func(c provider.Certificate) (bool, error) {
			p, err := get("one")
			if err != nil {
				return false, err
			}
			configuration, err := decode(ask(p, nil))
			return traefiktest.HasCertificate(configuration, c), err
		},
	}
}

func ask(p http.Handler, header http.Header) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	request.Header = header
	recorder := httptest.NewRecorder()
	p.ServeHTTP(recorder, request)
	return recorder
}

// decode reads an answer as Traefik does.
func decode(r *httptest.ResponseRecorder) (*dynamic.Configuration, error) {
	c := &dynamic.Configuration{}
	if r.Code != http.StatusOK {
		return c, fmt.Errorf("status %d", r.Code)
	}
	return c, decoder.DecodeContent(r.Body.String(), ".yaml", c)
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

func TestOptions(t *testing.T) {
	for name, opts := range map[string]web.Options{
		"dot in deployment":   {Deployment: "a.b"},
		"space in entrypoint": {HTTPEntryPoint: "we b"},
		"resolver alone":      {CertResolver: "le"},
	} {
		_, err := open(&opts)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
}

func TestIncomplete(t *testing.T) {
	p, err := web.New(nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, ask(p, nil).Code)
	require.Equal(t, http.StatusServiceUnavailable, ask(p, http.Header{"If-None-Match": {"*"}}).Code)
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: []provider.Route{route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")}}))
	c, err := decode(ask(p, nil))
	require.NoError(t, err)
	require.Equal(t, "http://198.18.0.1:80", traefiktest.Backend(c, "a.example.org"))
}

// TestEmpty: no routes are something that Traefik does not take for nothing.
func TestEmpty(t *testing.T) {
	p, err := open(nil)
	require.NoError(t, err)
	const empty = `{"http":{"middlewares":{"webspaced":{"addPrefix":{"prefix":"/"}}}}}`
	require.JSONEq(t, empty, ask(p, nil).Body.String())
	a := route(t, "ws-u1", "tcp://198.18.0.1:443", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: []provider.Route{a}}))
	require.NotEqual(t, empty, ask(p, nil).Body.String())
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}))
	require.JSONEq(t, empty, ask(p, nil).Body.String())
}

func TestETag(t *testing.T) {
	p, err := open(nil)
	require.NoError(t, err)
	put := func(routes ...provider.Route) {
		require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: routes}))
	}
	a, b := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"), route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	put(a, b)
	first := ask(p, nil)
	etag := first.Header().Get("Etag")
	require.Regexp(t, `^"[0-9a-f]{32}"$`, etag)
	require.Equal(t, "no-store", first.Header().Get("Cache-Control"))
	require.True(t, json.Valid(first.Body.Bytes()))

	unchanged := http.Header{"If-None-Match": {`"other", ` + etag}}
	again := ask(p, unchanged)
	require.Equal(t, http.StatusNotModified, again.Code)
	require.Empty(t, again.Body.Bytes())
	put(b, a)
	require.Equal(t, http.StatusNotModified, ask(p, unchanged).Code)
	moved := route(t, "ws-u1", "http://198.18.0.9:80", "a.example.org")
	put(moved)
	require.Equal(t, http.StatusOK, ask(p, unchanged).Code)
	put(a) // and back: the same bytes, in the same order
	require.Equal(t, http.StatusNotModified, ask(p, unchanged).Code)
	require.Equal(t, first.Body.String(), ask(p, nil).Body.String())
}

func TestMethods(t *testing.T) {
	p, err := open(nil)
	require.NoError(t, err)
	server := httptest.NewServer(p)
	defer server.Close()
	head, err := server.Client().Head(server.URL)
	require.NoError(t, err)
	defer head.Body.Close()
	get, err := server.Client().Get(server.URL + "/any/path")
	require.NoError(t, err)
	defer get.Body.Close()
	body, err := io.ReadAll(get.Body)
	require.NoError(t, err)
	require.EqualValues(t, len(body), head.ContentLength)
	require.Equal(t, head.Header.Get("Etag"), get.Header.Get("Etag"))
	post, err := server.Client().Post(server.URL, "text/plain", strings.NewReader("x"))
	require.NoError(t, err)
	defer post.Body.Close()
	require.Equal(t, http.StatusMethodNotAllowed, post.StatusCode)
}

// TestKept: the caller's slices are its own.
func TestKept(t *testing.T) {
	p, err := open(nil)
	require.NoError(t, err)
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: []provider.Route{a}}))
	other := route(t, "x", "http://198.18.0.1:80", "b.example.org").Hosts[0]
	kept := a.Hosts[0]
	a.Hosts[0] = other
	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, kept, routes[0].Hosts[0])
	routes[0].Hosts[0] = other
	routes, err = p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, kept, routes[0].Hosts[0])
}

func TestTraefik(t *testing.T) {
	traefiktest.Run(t, func(t *testing.T, _ testbed.TraefikVersion) traefiktest.Store {
		d := &daemon{t: t}
		return traefiktest.Store{
			Flags: []string{"--providers.http.endpoint=http://" + d.listen(), "--providers.http.pollinterval=20ms"},
			Open: func(challengeURL string) (provider.Provider, error) {
				d.opts = web.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", ChallengeURL: challengeURL}
				return d, d.start()
			},
			Away: d.stop,
			Back: func() { require.NoError(t, d.start()) },
		}
	})
}

// daemon is a process that has a provider: when it ends, all routes are gone with it. A new one's are complete with the
// first changes.
type daemon struct {
	t       *testing.T
	opts    web.Options
	address string
	server  *http.Server

	mu       sync.Mutex
	provider *web.Provider
}

// listen finds an address for all the daemon's lives.
func (d *daemon) listen() string {
	d.address = testbed.Addresses(d.t, 1)[0]
	return d.address
}

func (d *daemon) start() error {
	p, err := web.New(&d.opts)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", d.address)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.provider = p
	server := &http.Server{Handler: p}
	d.server = server
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	d.t.Cleanup(func() {
		server.Close()
		<-served
	})
	return nil
}

func (d *daemon) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.server.Close()
	d.provider = nil
}

func (d *daemon) Routes(ctx context.Context) ([]provider.Route, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.provider.Routes(ctx)
}

func (d *daemon) Apply(ctx context.Context, changes provider.Changes) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.provider == nil {
		return fmt.Errorf("the daemon is down: %w", errdefs.ErrUnavailable)
	}
	return d.provider.Apply(ctx, changes)
}
