package main_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
)

// server is a daemon on the local runtime, with alice (1000) in ws.example.org.
type server struct {
	t    *testing.T
	api  string
	logs bytes.Buffer
}

// startServer runs "webspaced serve", and creates alice's webspace; extra is the rest of the configuration.
func startServer(t *testing.T, resolver, extra string) *server {
	s := &server{t: t, api: testbed.Addresses(t, 1)[0]}
	file := filepath.Join(t.TempDir(), "webspaced.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
runtime: local
local: {directory: %q}
timeouts: {unready: 0s}
webspaces:
  domain: ws.example.org
  config_defaults: {startup_delay: 10, http_port: 8080}
  domains: {resolver: %q}
identity: {static: {users: [{id: 1000, username: alice, token: alice}]}}
http: {listen_address: %q}
%s`, filepath.Join(t.TempDir(), "instances"), resolver, s.api, extra), 0o600))
	cmd := exec.Command(program, "serve", "--config", file)
	cmd.Stderr = &s.logs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(s.logs.String())
		}
	})
	require.Eventually(t, func() bool { code, _ := s.call("GET", "/readyz", ""); return code == http.StatusNoContent }, 30*time.Second, 50*time.Millisecond)
	code, answer := s.call("POST", "/v1/webspace/self", `{"image": "hello"}`)
	require.Equal(t, http.StatusCreated, code, answer)
	return s
}

func (s *server) call(method, path, body string) (int, string) {
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.api+path, strings.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer alice")
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	data, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(data)
}

// Traefik reads from each store what the daemon writes there: visitors of a stopped webspace get in, and none does after it
// is deleted.
func TestServeBehindTraefik(t *testing.T) {
	for _, name := range []string{"file", "redis", "http"} {
		t.Run(name, func(t *testing.T) {
			config, flags := traefiktest.Between(t, name)
			gateway := testbed.Addresses(t, 1)[0]
			s := startServer(t, "127.0.0.1:1", fmt.Sprintf("gateway: {http_listen_address: %[1]q, trusted_proxies: [127.0.0.1]}\n"+
				"traefik: {provider: %[2]s, webspaced_url: 'http://%[1]s', settle: 0s, %[3]s}\n", gateway, name, config))
			proxy := testbed.Traefik(t, flags...)
			visit := func() string {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+proxy.Web+"/", nil)
				require.NoError(t, err)
				req.Host = "alice.ws.example.org"
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					return err.Error()
				}
				defer res.Body.Close()
				_, _ = io.Copy(io.Discard, res.Body)
				return res.Status
			}
			require.Eventually(t, func() bool { return visit() == "200 OK" }, 30*time.Second, 50*time.Millisecond)
			code, answer := s.call("DELETE", "/v1/webspace/self", "")
			require.Equal(t, http.StatusNoContent, code, answer)
			require.Eventually(t, func() bool { return visit() == "404 Not Found" }, 30*time.Second, 50*time.Millisecond)
		})
	}
}

// One binary is all: it proves a custom domain, obtains certificates of a real ACME authority for it and for the default
// domain, sends visitors to HTTPS, and boots the webspace for them.
func TestEdgeWithACME(t *testing.T) {
	ca := testbed.Pebble(t, 24*time.Hour)
	resolver := testbed.Proofs(t, map[string]string{"_webspaced.alice.example.net.": "webspace:id:1000"})
	s := startServer(t, resolver, fmt.Sprintf("gateway: {http_listen_address: %q, tls_listen_address: %q}\n"+
		"tls: {provider: acme, acme: {directory_url: %q, ca_file: %q, storage: %q}}\n",
		ca.HTTP, ca.TLS, ca.Directory, ca.CAFile, filepath.Join(t.TempDir(), "acme")))
	code, answer := s.call("POST", "/v1/webspace/self/domains/other.example.net", "")
	require.Equal(t, http.StatusBadRequest, code, answer)
	require.Contains(t, answer, "webspace:id:1000", "the member is told what record to set")
	code, answer = s.call("POST", "/v1/webspace/self/domains/alice.example.net", "")
	require.Equal(t, http.StatusCreated, code, answer)

	for _, host := range []string{"alice.ws.example.org", "alice.example.net"} {
		client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: ca.Roots(t), ServerName: host}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		}}
		get := func(url string) (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			require.NoError(t, err)
			req.Host = host
			res, err := client.Transport.RoundTrip(req)
			if err == nil {
				defer res.Body.Close()
				_, _ = io.Copy(io.Discard, res.Body)
			}
			return res, err
		}
		require.Eventually(t, func() bool {
			res, err := get("https://" + ca.TLS + "/")
			return err == nil && res.StatusCode == http.StatusOK && res.ProtoMajor == 2
		}, time.Minute, 200*time.Millisecond, host)
		res, err := get("http://" + ca.HTTP + "/page?x=1")
		require.NoError(t, err)
		require.Equal(t, http.StatusPermanentRedirect, res.StatusCode)
		require.Equal(t, "https://"+host+"/page?x=1", res.Header.Get("Location"))
	}
	code, answer = s.call("GET", "/v1/webspace/self/state", "")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, answer, `"running":true`)
	require.NotContains(t, answer, "problem")
}
