package oidc_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// daemon is a webspaced with local instances.
type daemon struct {
	t            *testing.T
	cmd          *exec.Cmd
	api, gateway string
	logged       chan struct{} // closed when it has no more to log
}

func build(t *testing.T) string {
	program := filepath.Join(t.TempDir(), "webspaced")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-C", "../..", "-race", "-o", program, "./cmd/webspaced").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

func start(t *testing.T, program, config string) *daemon {
	cmd := exec.Command(program, "serve", "--config", config)
	log, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	d := &daemon{t: t, cmd: cmd, logged: make(chan struct{})}
	t.Cleanup(func() { watchdog.Stop(); _ = cmd.Process.Kill() })
	serving := regexp.MustCompile(`msg=serving api=(\S+) gateway=(\S+)`)
	addresses := make(chan []string, 1)
	go func() {
		defer close(d.logged)
		defer close(addresses)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				addresses <- m
			}
			t.Log(lines.Text())
		}
	}()
	m := <-addresses
	require.NotNil(t, m, "it does not serve")
	d.api, d.gateway = "http://"+m[1], "http://"+m[2]
	return d
}

func (d *daemon) stop() {
	require.NoError(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	<-d.logged
	require.NoError(d.t, d.cmd.Wait())
}

func (d *daemon) call(method, token, path, body string) (int, string) {
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.api+path, strings.NewReader(body))
	require.NoError(d.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	return d.do(req)
}

func (d *daemon) visit(host string) int {
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, d.gateway, nil)
	require.NoError(d.t, err)
	req.Host = host
	status, _ := d.do(req)
	return status
}

func (d *daemon) do(req *http.Request) (int, string) {
	resp, err := http.DefaultClient.Do(req)
	require.NoError(d.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(d.t, err)
	return resp.StatusCode, string(answer)
}

func listen(t *testing.T, address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	return listener
}

// serve serves until the function it returns is called.
func serve(t *testing.T, listener net.Listener, handler http.Handler) (stop func()) {
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = func() {
		_ = server.Close()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// A member signs in, and has a webspace; its name is known after a restart, with the provider away and nobody signed in.
func TestDaemon(t *testing.T) {
	program := build(t)
	listener := listen(t, "127.0.0.1:0")
	address := listener.Addr().String()
	s := newSociety(t, "http://"+address)
	stop := serve(t, listener, s.handler)

	dir := t.TempDir()
	config := filepath.Join(dir, "webspaced.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
log_level: debug
runtime: local
local: {directory: %s}
webspaces: {domain: example.test}
http: {listen_address: 127.0.0.1:0}
gateway: {http_listen_address: 127.0.0.1:0}
identity:
  provider: oidc
  oidc: {issuer: "http://%s", audience: webspaced, id_claim: uid_number, admin_claim: realm_access.roles, admin_value: webspace-admins}
`, dir, address), 0o600))
	d := start(t, program, config)
	alice := idToken(login(t, s, http.DefaultTransport, "webspaced", "alice", "correct horse"))
	root := idToken(login(t, s, http.DefaultTransport, "webspaced", "root", "battery staple"))
	elsewhere := idToken(login(t, s, http.DefaultTransport, "dashboard", "alice", "correct horse"))

	status, body := d.call("POST", alice, "/v1/webspace/self", `{"image": "hello"}`)
	require.Equal(t, http.StatusCreated, status, "%s", body)
	require.Contains(t, body, `"user":1000`)
	require.Equal(t, http.StatusOK, d.visit("alice.example.test"))
	status, _ = d.call("GET", root, "/v1/webspace/alice", "")
	require.Equal(t, http.StatusOK, status)
	status, _ = d.call("GET", alice, "/v1/webspace/root", "")
	require.Equal(t, http.StatusForbidden, status)
	status, _ = d.call("GET", elsewhere, "/v1/webspace/self", "")
	require.Equal(t, http.StatusUnauthorized, status)
	d.stop()

	stop()
	d = start(t, program, config)
	require.Equal(t, http.StatusOK, d.visit("alice.example.test"))
	status, body = d.call("GET", alice, "/v1/webspace/self", "")
	require.Equal(t, http.StatusServiceUnavailable, status, "%s", body)

	serve(t, listen(t, address), s.handler)
	require.Eventually(t, func() bool {
		status, _ := d.call("GET", root, "/v1/webspace/alice", "")
		return status == http.StatusOK
	}, time.Minute, 100*time.Millisecond, "an admin reaches who has not signed in since the restart")
	status, body = d.call("DELETE", root, "/v1/webspace/alice", "")
	require.Equal(t, http.StatusNoContent, status, "%s", body)
	d.stop()
}
