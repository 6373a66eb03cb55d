// Package integration_test runs the daemon, as operators get it, against a real LXD and a real Traefik.
package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace/local"
)

func TestMain(m *testing.M) {
	local.Main() // the instances of the local runtime run this very program
	testbed.Main(m)
}

// binary builds the daemon, once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "webspaced-integration-")
	if err != nil {
		return "", err
	}
	testbed.AtEnd(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "webspaced")
	out, err := exec.Command("go", "build", "-race", "-o", path, "github.com/netsoc/webspaced/cmd/webspaced").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// daemon is a webspaced process. It keeps its addresses over a restart.
type daemon struct {
	api, gateway string
	config       string   // path
	env          []string // that goes before it
	cmd          *exec.Cmd
	ended        chan struct{}
	logs         buffer
}

const users = `[{id: 1, username: admin, admin: true, token: admin}, {id: 1000, username: alice, token: alice}, {id: 1001, username: bob, token: bob}]`

// startDaemon runs "webspaced serve" with users alice (1000), bob (1001) and admin (1), whose tokens are their names.
// prefix is that of instances; extra returns what else the configuration says, given the gateway's address, and env what
// goes before it.
func startDaemon(t *testing.T, e *testbed.Engine, prefix string, extra func(gateway string) string, env ...string) *daemon {
	t.Helper()
	addresses := testbed.Addresses(t, 2)
	d := &daemon{api: addresses[0], gateway: addresses[1], config: filepath.Join(t.TempDir(), "webspaced.yaml"), env: env}
	config := fmt.Sprintf(`
log_level: debug
lxd: {unix_socket: %s}
http: {listen_address: %q, limits: {rate: 10000, burst: 10000, expensive_rate: 10000, expensive_burst: 10000}}
gateway: {http_listen_address: %q, trusted_proxies: [127.0.0.1]}
webspaces:
  domain: ws.example.test
  instance_prefix: %s
  lxd_profile: %s
  config_defaults: {startup_delay: 10}
identity:
  static:
    users: %s
`, e.Socket, d.api, d.gateway, prefix, e.Profile, users)
	if extra != nil {
		config += extra(d.gateway)
	}
	if !strings.Contains(config, "timeouts:") {
		config += "timeouts: {unready: 0s}\n" // most have no successor
	}
	require.NoError(t, os.WriteFile(d.config, []byte(config), 0o600))
	d.run(t)
	return d
}

// run starts the daemon, and ends it with the test.
func (d *daemon) run(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("the daemon said:\n%s", d.logs.String())
		}
	})
	d.start(t)
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	path, err := binary()
	require.NoError(t, err)
	d.cmd = exec.Command(path, "serve", "--config", d.config)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.logs, &d.logs
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, d.cmd.Start())
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + d.api + "/health")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	}, 30*time.Second, 20*time.Millisecond)
}

func (d *daemon) kill() {
	if d.cmd != nil {
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
}

// terminate ends the daemon as an init system does.
func (d *daemon) terminate(t *testing.T) {
	t.Helper()
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-d.ended:
	case <-time.After(40 * time.Second):
		t.Fatal("the daemon does not end")
	}
	require.Equal(t, 0, d.cmd.ProcessState.ExitCode())
}

// do calls the API as user; a status below 300 is decoded into result unless that is nil.
func (d *daemon) do(t *testing.T, user, method, path string, body, result any) int {
	t.Helper()
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		require.NoError(t, err)
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.api+"/v1"+path, reader)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+user)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	if res.StatusCode >= 300 {
		t.Logf("%s %s: %d %s", method, path, res.StatusCode, data)
	} else if result != nil {
		require.NoError(t, json.Unmarshal(data, result), "%s", data)
	}
	return res.StatusCode
}

func (d *daemon) create(t *testing.T, user, image string) {
	t.Helper()
	require.Equal(t, http.StatusCreated, d.do(t, user, "POST", "/webspace/self", map[string]any{"image": image}, nil))
}

func (d *daemon) running(t *testing.T, user string) bool {
	t.Helper()
	var state struct{ Running bool }
	require.Equal(t, http.StatusOK, d.do(t, user, "GET", "/webspace/self/state", nil, &state))
	return state.Running
}

// visit asks a web server at address for a host's page.
func visit(ctx context.Context, address, host string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// answered requires that the very next request is answered by the user's instance.
func answered(t *testing.T, address, user, instance string) {
	t.Helper()
	status, body, err := visit(t.Context(), address, user+".ws.example.test")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, "%s", body)
	require.Equal(t, "hello from "+instance+"\n", body)
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) contains(text string) bool { return strings.Contains(b.String(), text) }

// canary listens on an address that nobody may be sent to, and counts who is.
func canary(t *testing.T, address string) (visits func() int) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	var mu sync.Mutex
	n := 0
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}
