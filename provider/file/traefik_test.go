package file_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
)

// front is a real Traefik and the provider whose directory it watches.
type front struct {
	*testbed.Proxy
	*file.Provider
	dir    string
	client *http.Client
}

func newFront(t *testing.T) *front {
	dir := t.TempDir()
	p, err := file.New(dir, &file.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure"})
	require.NoError(t, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	return &front{
		Proxy:    testbed.Traefik(t, "--providers.file.directory="+dir, "--providers.providersthrottleduration=10ms"),
		Provider: p, dir: dir, client: &http.Client{Transport: transport, Timeout: 10 * time.Second},
	}
}

// get asks Traefik for a host; the answer is the status and, if that is 200, who answered.
func (f *front) get(t *testing.T, host string) (string, error) {
	return get(t, f.client, "http://"+f.Web, host)
}

func get(t *testing.T, client *http.Client, url, host string) (string, error) {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Host = host
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	return answer(response)
}

func answer(response *http.Response) (string, error) {
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return response.Status, err
	}
	return string(body), err
}

// eventually reports whether want is the answer for host in the end.
func eventually(t *testing.T, client *http.Client, url, host, want string) bool {
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		var err error
		if last, err = get(t, client, url, host); err == nil && last == want {
			return true
		}
	}
	t.Errorf("%s is answered by %q, not by %q", host, last, want)
	return false
}

func (f *front) requireEventually(t *testing.T, host, want string) {
	t.Helper()
	require.True(t, eventually(t, f.client, "http://"+f.Web, host, want))
}

// backend answers with its name and the host that it was asked for.
func backend(t *testing.T, name string) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, name, " ", r.Host)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestTraefikServesRoutes(t *testing.T) {
	f := newFront(t)
	a, b := backend(t, "a"), backend(t, "b")
	alice := route(t, "ws-u1", a, "alice.example.org", "www.alice.example")
	require.NoError(t, f.Apply(t.Context(), put(alice, route(t, "ws-u2", b, "bob.example.org"))))
	f.requireEventually(t, "alice.example.org", "a alice.example.org")
	f.requireEventually(t, "www.alice.example", "a www.alice.example")
	f.requireEventually(t, "bob.example.org", "b bob.example.org")
	f.requireEventually(t, "carol.example.org", "404 Not Found")

	// The HTTPS entry point serves it with a certificate of Traefik's own.
	secure := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: "alice.example.org"},
	}}
	require.True(t, eventually(t, &secure, "https://"+f.Secure, "alice.example.org", "a alice.example.org"))

	require.NoError(t, f.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}))
	f.requireEventually(t, "alice.example.org", "404 Not Found")
	f.requireEventually(t, "www.alice.example", "404 Not Found")
	f.requireEventually(t, "bob.example.org", "b bob.example.org")

	// Deleting the very last one counts, too.
	require.NoError(t, f.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u2"}}))
	f.requireEventually(t, "bob.example.org", "404 Not Found")
}

func TestTraefikPassesTLSThrough(t *testing.T) {
	f := newFront(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "own TLS") }))
	t.Cleanup(server.Close)
	tcp := "tcp://" + server.Listener.Addr().String()
	// httptest's certificate is for this name.
	require.NoError(t, f.Apply(t.Context(), put(route(t, "ws-u1", tcp, "alice.example.com", "example.com.example"))))

	client := server.Client()
	client.Timeout = 10 * time.Second
	transport := client.Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, f.Secure)
	}
	client.Transport = transport
	var last error
	require.Eventually(t, func() bool {
		response, err := client.Get("https://alice.example.com")
		if last = err; err != nil {
			return false
		}
		who, err := answer(response)
		return err == nil && who == "own TLS"
	}, 30*time.Second, 20*time.Millisecond, "%v", last)
}

// TestTraefikSwitchesUnderLoad moves a route to and fro while it is asked for all the time: no request fails.
func TestTraefikSwitchesUnderLoad(t *testing.T) {
	f := newFront(t)
	const host = "alice.example.org"
	var backends []string
	names := []string{"a", "b"}
	for _, name := range names {
		backends = append(backends, backend(t, name))
	}
	require.NoError(t, f.Apply(t.Context(), put(route(t, "ws-u1", backends[0], host))))
	f.requireEventually(t, host, "a "+host)

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var requests atomic.Int64
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				who, err := f.get(t, host)
				if err != nil || who != "a "+host && who != "b "+host {
					t.Errorf("request %d: answered by %q, error %v", requests.Load(), who, err)
					return
				}
				requests.Add(1)
			}
		})
	}
	const switches = 50
	for i := 1; i <= switches && !t.Failed(); i++ {
		if err := f.Apply(t.Context(), put(route(t, "ws-u1", backends[i%2], host))); err != nil {
			t.Errorf("switch %d: %v", i, err)
			break
		}
		eventually(t, f.client, "http://"+f.Web, host, names[i%2]+" "+host)
	}
	cancel()
	load.Wait()
	require.Greater(t, requests.Load(), int64(switches))
	t.Logf("%d switches, %d requests", switches, requests.Load())
}

// TestTraefikAndMalformedFiles: somebody's malformed file keeps Traefik from taking anything over, which no provider
// can help. What stood is served on, and what came meanwhile is once the file is gone.
func TestTraefikAndMalformedFiles(t *testing.T) {
	f := newFront(t)
	a, b := backend(t, "a"), backend(t, "b")
	require.NoError(t, f.Apply(t.Context(), put(route(t, "ws-u1", a, "alice.example.org"))))
	f.requireEventually(t, "alice.example.org", "a alice.example.org")

	foreign := filepath.Join(f.dir, "foreign.yml")
	require.NoError(t, os.WriteFile(foreign, []byte("http: [what, {{ is this"), 0o644))
	require.NoError(t, f.Apply(t.Context(), put(route(t, "ws-u2", b, "bob.example.org"))))
	f.requireEventually(t, "alice.example.org", "a alice.example.org")
	content, err := os.ReadFile(foreign)
	require.NoError(t, err)
	require.Equal(t, "http: [what, {{ is this", string(content))

	require.NoError(t, os.Remove(foreign))
	f.requireEventually(t, "bob.example.org", "b bob.example.org")
	f.requireEventually(t, "alice.example.org", "a alice.example.org")
}

// TestTraefikAndSpellings: somebody tries to get hold of a host by other ways to spell it, first as the owner of a
// route, then as a visitor.
func TestTraefikAndSpellings(t *testing.T) {
	f := newFront(t)
	const host = "bob.example.org"
	bob, eve := backend(t, "bob"), backend(t, "eve")
	owner := route(t, "ws-u1", bob, host)

	spellings := []string{
		"*", "*.org", "*.example.org", "bob.example", "example.org", "bob.example.org.evil.org", "bob.example.org.evil.org.evil.org",
		"x.test`) || HostRegexp(`.*", "x.test`) || PathPrefix(`/", "{{ `bob.example.org` }}", "{any:.*}", "bob.example.org`,`x.org", "^.*$",
		"bob%2eexample%2eorg", "xn--bob-.example.org", "0.0.0.0", "::", "bob.example.org:80", "http://bob.example.org", "eve@bob.example.org",
		host + "..", "." + host, "..", strings.ToUpper(host), "Bob.Example.Org", strings.ToUpper(host) + ".", host + ".",
	}
	for i := range len(host) + 1 {
		for _, insert := range []string{"*", ".", "`", "{{", "-", "_", "%", "\\", "\x00", "\u200b", "\u00ad", "\n", " ", "x"} {
			spellings = append(spellings, host[:i]+insert+host[i:])
		}
	}
	for _, r := range []string{"\u212a", "\uff42", "\u03bf", "о", "\u2024", "\u3002", "\uff0e", "O", "0"} {
		spellings = append(spellings, strings.Replace(host, "o", r, 1), strings.Replace(host, ".", r, 1), strings.ReplaceAll(host, "b", r))
	}
	require.Greater(t, len(spellings), 200)

	routes, taken := []provider.Route{owner}, map[provider.Host]bool{owner.Hosts[0]: true}
	for i, spelling := range spellings {
		if h, err := provider.ParseHost(spelling); err == nil && !taken[h] {
			taken[h] = true
			routes = append(routes, provider.Route{Name: fmt.Sprint("ws-eve", i), Hosts: []provider.Host{h}, Backend: eve})
		}
	}
	require.Greater(t, len(routes), 20)
	require.NoError(t, f.Apply(t.Context(), put(routes...)))
	last := routes[len(routes)-1].Hosts[0].String()
	f.requireEventually(t, last, "eve "+last)

	for _, spelling := range append(spellings, host, host+":80", host+".:80", "BOB.example.org:8080") {
		if strings.ContainsAny(spelling, "\r\n") {
			continue // is not a header any more
		}
		who := rawGet(t, f.Web, spelling)
		// One dot at the end, the port and the case of letters are not part of a name.
		name, _, _ := strings.Cut(spelling, ":")
		h, err := provider.ParseHost(name)
		switch {
		case err == nil && h == owner.Hosts[0]:
			require.Truef(t, strings.HasPrefix(who, "bob "), "%q is answered by %q", spelling, who)
		case err == nil && taken[h]:
			require.Truef(t, strings.HasPrefix(who, "eve "), "%q is answered by %q", spelling, who)
		default:
			require.Falsef(t, strings.HasPrefix(who, "eve "), "%q is answered by %q", spelling, who)
		}
	}
}

// rawGet sends a Host header as it is.
func rawGet(t *testing.T, address, host string) string {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err, "%q", host)
	who, err := answer(response)
	require.NoError(t, err)
	return who
}
