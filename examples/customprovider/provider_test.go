package caddyroutes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/require"

	caddyroutes "example.org/caddyroutes"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
)

// The tests run a real Caddy in this process, on two addresses of the loopback.
var (
	site  = address()
	admin = address()
)

func address() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestMain(m *testing.M) {
	code := m.Run()
	_ = caddy.Stop()
	os.Exit(code)
}

// start gives Caddy a configuration with an HTTP server without routes.
func start(t *testing.T) {
	config := fmt.Appendf(nil, `{
		"admin": {"listen": %q, "config": {"persist": false}},
		"logging": {"logs": {"default": {"level": "ERROR"}}},
		"apps": {"http": {"servers": {"web": {
			"listen": [%q], "automatic_https": {"disable": true}, "protocols": ["h1"], "routes": []
		}}}}
	}`, admin, site)
	require.NoError(t, caddy.Load(config, true))
}

func open(deployment string) *caddyroutes.Provider {
	return caddyroutes.New("http://"+admin, "web", deployment)
}

// call uses the admin API as a person with curl would.
func call(method, path string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	response, err := retry(func() (*http.Response, error) {
		request, err := http.NewRequest(method, "http://"+admin+path, bytes.NewReader(text))
		if err != nil {
			return nil, err
		}
		request.Header.Set("Content-Type", "application/json")
		return http.DefaultClient.Do(request)
	})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return answer, err
}

// retry does what a browser does when a connection breaks before the answer begins: Caddy can drop a connection that it
// accepts at the moment of a change.
func retry(do func() (*http.Response, error)) (response *http.Response, err error) {
	for range 10 {
		if response, err = do(); err == nil {
			break
		}
	}
	return response, err
}

const routes = "/config/apps/http/servers/web/routes"

func TestProvider(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Harness {
		start(t)
		var foreign []string
		return providertest.Harness{
			Open:     func(deployment string) (provider.Provider, error) { return open(deployment), nil },
			Lookup:   lookup,
			HTTPOnly: true,
			Damage: map[string]func(string, string) error{
				"backend": func(deployment, route string) error {
					_, err := call("PATCH", "/id/"+deployment+"."+route+"/handle/0/upstreams/0/dial", "198.18.0.66:80")
					return err
				},
				"hosts": func(deployment, route string) error {
					_, err := call("PATCH", "/id/"+deployment+"."+route+"/match/0/host", []string{"z.example.org"})
					return err
				},
				"one more matcher": func(deployment, route string) error {
					_, err := call("PUT", "/id/"+deployment+"."+route+"/match/0/path", []string{"/only"})
					return err
				},
				"no handler": func(deployment, route string) error {
					_, err := call("DELETE", "/id/"+deployment+"."+route+"/handle", nil)
					return err
				},
				"not terminal": func(deployment, route string) error {
					_, err := call("PATCH", "/id/"+deployment+"."+route+"/terminal", false)
					return err
				},
			},
			WriteForeign: func(deployment, route string) error {
				for _, id := range []string{"", deployment, deployment + "s." + route, "x" + deployment + "." + route, deployment + "." + route + ".x", route} {
					entry := map[string]any{"match": []any{map[string]any{"path": []string{"/" + id + "/*"}}}, "group": "g" + id}
					if id != "" {
						entry["@id"] = id
						foreign = append(foreign, id)
					}
					if _, err := call("POST", routes, entry); err != nil {
						return err
					}
				}
				return nil
			},
			ReadForeign: func() (all []byte, err error) {
				for _, id := range foreign {
					entry, err := call("GET", "/id/"+id, nil)
					if err != nil {
						return nil, err
					}
					all = append(all, entry...)
				}
				list, err := call("GET", routes, nil)
				return fmt.Append(all, bytes.Count(list, []byte(`"group":"g"`))), err
			},
		}
	})
}

// lookup finds the first of Caddy's routes that matches a host.
func lookup(host provider.Host) (string, error) {
	text, err := call("GET", routes, nil)
	if err != nil {
		return "", err
	}
	var list []struct {
		Match  []struct{ Host []string }
		Handle []struct{ Upstreams []struct{ Dial string } }
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", err
	}
	for _, route := range list {
		for _, match := range route.Match {
			for _, name := range match.Host {
				if name == host.String() {
					return "http://" + route.Handle[0].Upstreams[0].Dial, nil
				}
			}
		}
	}
	return "", nil
}

// TestSwitchUnderLoad moves a route to and fro while it is asked for all the time: no request fails.
func TestSwitchUnderLoad(t *testing.T) {
	start(t)
	host, err := provider.ParseHost("alice.example.org")
	require.NoError(t, err)
	var alternatives []provider.Route
	for _, name := range []string{"a", "b"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, name, " ", r.Host)
		}))
		defer server.Close()
		alternatives = append(alternatives, provider.Route{Name: "ws-u1", Hosts: []provider.Host{host}, Backend: server.URL})
	}
	p := open("webspaced")
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Put: alternatives[:1]}))

	client := http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func() (string, error) {
		request, err := http.NewRequest(http.MethodGet, "http://"+site, nil)
		if err != nil {
			return "", err
		}
		request.Host = host.String()
		response, err := retry(func() (*http.Response, error) { return client.Do(request) })
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		name, asked, _ := strings.Cut(string(body), " ")
		if err == nil && asked != host.String() {
			err = fmt.Errorf("%s: %q", response.Status, body)
		}
		return name, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := get(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := 1; i <= 20; i++ {
		// Caddy answers when the new configuration is in place.
		err := p.Apply(t.Context(), provider.Changes{Put: alternatives[i%2 : i%2+1]})
		name, getErr := get()
		if err != nil || getErr != nil || name != []string{"a", "b"}[i%2] {
			t.Errorf("switch %d: answered by %q, errors %v, %v", i, name, err, getErr)
			break
		}
	}
	cancel()
	load.Wait()
}
