package main_test

import (
	"bufio"
	"bytes"
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

// program is the built command.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "webspaced-cmd-")
	if err == nil {
		program = filepath.Join(dir, "webspaced")
		var out []byte
		if out, err = exec.Command("go", "build", "-race", "-o", program, ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// run runs the command to its end.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), &out, &errs
	cmd.Env = []string{"HOME=" + cmd.Dir, "TMPDIR=" + cmd.Dir}
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestVersion(t *testing.T) {
	out, _, code := run(t, "version")
	require.Zero(t, code)
	require.Regexp(t, `^webspaced \S.*go1\.\d+`, out)
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.yaml")
	require.NoError(t, os.WriteFile(good, []byte("webspaces: {domain: example.org}\nidentity: {static: {users: [{id: 1, username: a, token: very-secret}]}}\n"), 0o600))
	bad := filepath.Join(dir, "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("webspaces: {domian: example.org}\nhttp: {listen_address: nowhere}\n"), 0o600))

	out, _, code := run(t, "config", "check", good)
	require.Zero(t, code)
	require.Contains(t, out, "no mistakes")

	_, errs, code := run(t, "config", "check", bad)
	require.Equal(t, 1, code)
	require.Contains(t, errs, bad+":1: webspaces.domian")
	require.Contains(t, errs, bad+":2: http.listen_address", "all mistakes are told at once")

	out, _, code = run(t, "config", "show", good)
	require.Zero(t, code)
	require.Contains(t, out, "domain: example.org")
	require.NotContains(t, out, "very-secret")

	_, errs, code = run(t, "config", "check", filepath.Join(dir, "none.yaml"))
	require.Equal(t, 1, code)
	require.Contains(t, errs, "none.yaml")
}

func TestServeMistakes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for name, test := range map[string]struct{ config, want string }{
		"taken port":   {fmt.Sprintf("runtime: local\nlocal: {directory: x}\nhttp: {listen_address: %q}\ngateway: {http_listen_address: 127.0.0.1:0}\n", taken.Addr()), "http.listen_address"},
		"no engine":    {"lxd: {unix_socket: /nowhere/unix.socket}\ntimeouts: {startup: 1s}\nhttp: {listen_address: 127.0.0.1:0}\ngateway: {http_listen_address: 127.0.0.1:0}\n", "/nowhere/unix.socket"},
		"no directory": {"runtime: local\nlocal: {directory: x}\nhttp: {listen_address: 127.0.0.1:0}\ngateway: {http_listen_address: 127.0.0.1:0}\ntraefik: {provider: file, file: {directory: /nowhere}, webspaced_url: http://127.0.0.1:1}\n", "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "webspaced.yaml")
			require.NoError(t, os.WriteFile(file, []byte("webspaces: {domain: example.org}\nidentity: {static: {users: [{id: 1, username: a, token: t}]}}\n"+test.config), 0o600))
			_, errs, code := run(t, "serve", "--config", file)
			require.Equal(t, 1, code)
			require.Contains(t, errs, test.want)
		})
	}
}

func TestDemoMistakes(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"everybody's address": {[]string{"--gateway", "0.0.0.0:0"}, "loopback"},
		"no port":             {[]string{"--listen", "localhost"}, "--listen"},
		"no such runtime":     {[]string{"--runtime", "docker"}, "docker"},
		"no such image":       {[]string{"--runtime", "local", "--image", "windows"}, "--image"},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs, code := run(t, append([]string{"demo", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0"}, test.args...)...)
			require.Equal(t, 1, code)
			require.Contains(t, errs, test.want)
		})
	}
}

// The demo does what it prints, and leaves nothing.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(program, "demo", "--runtime", "local", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()

	var text strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "Control-C") {
		text.WriteString(lines.Text() + "\n")
	}
	site := regexp.MustCompile(`http://alice\.localhost(:\d+)`).FindStringSubmatch(text.String())
	api := regexp.MustCompile(`http://127\.0\.0\.1:\d+/v1`).FindString(text.String())
	require.NotNil(t, site, "%s%s", &text, &errs)
	require.NotEmpty(t, api)

	call := func(method, user, url, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		require.NoError(t, err)
		if name, ok := strings.CutPrefix(user, "host:"); ok {
			req.Host = name
		} else {
			req.Header.Set("Authorization", "Bearer "+user)
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(data)
	}
	gateway := "http://127.0.0.1" + site[1]
	code, _ := call("GET", "host:evil.example", api+"/images", "")
	require.Equal(t, http.StatusForbidden, code, "a name that leads here by DNS")
	if os.Getuid() == 0 {
		strange := exec.Command("curl", "-s", "-H", "Authorization: Bearer bob", api+"/webspace/self")
		strange.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := strange.Output(); err == nil {
			require.Contains(t, string(out), "who has started it", "another user of this computer")
		}
	}
	_, state := call("GET", "alice", api+"/webspace/self/state", "")
	require.Contains(t, state, `"running":false`)
	code, page := call("GET", "host:alice.localhost", gateway, "")
	require.Equal(t, http.StatusOK, code, "%s", page)
	_, state = call("GET", "alice", api+"/webspace/self/state", "")
	require.Contains(t, state, `"running":true`)
	code, _ = call("DELETE", "alice", api+"/webspace/self/state", "")
	require.Equal(t, http.StatusNoContent, code)
	code, forward := call("POST", "alice", api+"/webspace/self/ports/8080", "")
	require.Equal(t, http.StatusCreated, code)
	port := regexp.MustCompile(`\d+`).FindString(forward)
	code, page = call("GET", "host:whatever", "http://127.0.0.1:"+port, "")
	require.Equal(t, http.StatusOK, code, "it boots: %s", page)
	code, _ = call("POST", "bob", api+"/webspace/self", `{"image": "hello"}`)
	require.Equal(t, http.StatusCreated, code)
	code, _ = call("GET", "host:bob.localhost", gateway, "")
	require.Equal(t, http.StatusOK, code)
	_, metrics := call("GET", "", strings.TrimSuffix(api, "/v1")+"/metrics", "")
	require.Contains(t, metrics, "\nwebspaced_boot_duration_seconds_count{result=\"ready\"} 3\n")
	require.Contains(t, metrics, "\nwebspaced_accepted_connections_total{front_end=\"forwarder\"} 1\n")
	require.Contains(t, metrics, "\nwebspaced_webspaces{state=\"running\"} 2\n")
	require.NotContains(t, metrics, "alice")

	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_, _ = io.Copy(io.Discard, out)
	require.NoError(t, cmd.Wait(), "%s", &errs)
	left, err := filepath.Glob(filepath.Join(dir, "webspaced-demo-*"))
	require.NoError(t, err)
	require.Empty(t, left)
	processes, err := exec.Command("pgrep", "-f", program).Output()
	require.Error(t, err, "these are left: %s", processes)
}
