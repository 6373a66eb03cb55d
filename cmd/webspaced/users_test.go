package main_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// iamd answers as the real one does, for two accounts; what it says can be changed.
type iamd struct {
	mu      sync.Mutex
	status  int // of every answer, if it is not 0
	revoked map[string]bool
}

func (i *iamd) set(change func(*iamd)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *iamd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	const (
		alice = `{"id": 1000, "username": "alice", "email": "a@example.org", "first_name": "A", "last_name": "L", "ssh_key": null, "is_admin": null, "verified": true, "renewed": "2021-01-01T00:00:00Z"}`
		root  = `{"id": 1, "username": "root", "email": "r@example.org", "first_name": "R", "last_name": "T", "ssh_key": null, "is_admin": true, "verified": true, "renewed": "2021-01-01T00:00:00Z"}`
	)
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer e30.e30.x") // the form of a JWT
	self := map[string]string{"alices": alice, "roots": root}[token]
	switch who := strings.TrimPrefix(r.URL.Path, "/v1/users/"); {
	case i.status != 0:
		w.WriteHeader(i.status)
	case self == "" || i.revoked[token]:
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"message": "invalid token"}`)
	case who == "self/token":
		w.WriteHeader(http.StatusNoContent)
	case who == "self":
		fmt.Fprint(w, self)
	case token != "roots":
		w.WriteHeader(http.StatusForbidden)
	case who == "id:1000", who == "alice":
		fmt.Fprint(w, alice)
	case who == "id:1", who == "root":
		fmt.Fprint(w, root)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message": "user not found"}`)
	}
}

// A log-out takes effect soon; without iamd the API says so, and sites go on.
func TestServeWithIamd(t *testing.T) {
	users := &iamd{revoked: make(map[string]bool)}
	server := httptest.NewServer(users)
	defer server.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "webspaced.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
iam: {url: "%s/v1", token: e30.e30.xroots}
identity: {cache_ttl: 200ms}
runtime: local
local: {directory: %s}
webspaces: {domain: example.test}
http: {listen_address: 127.0.0.1:0}
gateway: {http_listen_address: 127.0.0.1:0}
`, server.URL, dir), 0o600))
	cmd := exec.Command(program, "serve", "--config", file)
	log, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	serving := regexp.MustCompile(`msg=serving api=(\S+) gateway=(\S+)`)
	var at []string
	lines := bufio.NewScanner(log)
	for at == nil && lines.Scan() {
		at = serving.FindStringSubmatch(lines.Text())
	}
	require.NotNil(t, at, "it does not serve")
	var rest strings.Builder
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines.Scan() {
			rest.WriteString(lines.Text() + "\n")
		}
	}()

	do := func(req *http.Request) int {
		resp, err := http.DefaultClient.Do(req.WithContext(t.Context()))
		require.NoError(t, err)
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		if resp.StatusCode >= http.StatusBadRequest {
			t.Logf("%s %s: %d %s", req.Method, req.URL.Path, resp.StatusCode, answer)
		}
		return resp.StatusCode
	}
	call := func(method, token, who, body string) int {
		req, err := http.NewRequest(method, "http://"+at[1]+"/v1/webspace/"+who, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer e30.e30.x"+token)
		req.Header.Set("Content-Type", "application/json")
		return do(req)
	}
	visit := func() int {
		req, err := http.NewRequest("GET", "http://"+at[2], nil)
		require.NoError(t, err)
		req.Host = "alice.example.test"
		return do(req)
	}
	eventually := func(want int, token, who string) {
		t.Helper()
		require.Eventually(t, func() bool { return call("GET", token, who, "") == want }, 30*time.Second, 20*time.Millisecond)
	}

	require.Equal(t, http.StatusCreated, call("POST", "alices", "self", `{"image": "hello"}`))
	require.Equal(t, http.StatusOK, visit())
	require.Equal(t, http.StatusOK, call("GET", "roots", "alice", ""))
	require.Equal(t, http.StatusNotFound, call("GET", "roots", "nobody", ""))
	require.Equal(t, http.StatusForbidden, call("GET", "alices", "root", ""))
	require.Equal(t, http.StatusUnauthorized, call("GET", "malices", "self", ""))

	users.set(func(i *iamd) { i.revoked["alices"] = true })
	eventually(http.StatusUnauthorized, "alices", "self")
	users.set(func(i *iamd) { i.revoked["alices"] = false })
	eventually(http.StatusOK, "alices", "self")

	users.set(func(i *iamd) { i.status = http.StatusInternalServerError })
	eventually(http.StatusServiceUnavailable, "alices", "self")
	require.Equal(t, http.StatusServiceUnavailable, call("GET", "roots", "alice", ""))
	require.Equal(t, http.StatusOK, visit())
	users.set(func(i *iamd) { i.status = 0 })
	eventually(http.StatusOK, "alices", "self")

	require.Equal(t, http.StatusNoContent, call("DELETE", "alices", "self", ""))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	<-drained
	require.NoError(t, cmd.Wait())
	require.NotContains(t, rest.String(), "alices", "a token is in the log")
}
