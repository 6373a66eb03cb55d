package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// With few file descriptors, idle connections to the gateway, the API and a forwarded port, all at once, keep nobody out of
// the first two: not one client that has as many as it may, and not others.
func TestFewDescriptors(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", `ulimit -n 256 && exec "$0" demo --runtime local --listen 127.0.0.1:0 --gateway 127.0.0.1:0`, program)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	stop := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	defer stop()
	var text strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "Control-C"); {
		text.WriteString(lines.Text() + "\n")
	}
	gateway := regexp.MustCompile(`http://127\.0\.0\.1:\d+\)`).FindString(text.String())
	api := regexp.MustCompile(`http://127\.0\.0\.1:\d+/v1`).FindString(text.String())
	require.NotEmpty(t, gateway, "%s", &text)
	require.NotEmpty(t, api)
	gateway = strings.TrimSuffix(gateway, ")")

	from := func(source string) *http.Client {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		transport := &http.Transport{DialContext: dialer.DialContext}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: 30 * time.Second}
	}
	ask := func(client *http.Client, url, host, token string) (int, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		if host != "" {
			req.Host = host
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return res.StatusCode, err
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+"/webspace/self/ports/8080", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer alice")
	res, err := from("127.0.0.1").Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	var forwarded struct{ EPort int }
	require.NoError(t, json.NewDecoder(res.Body).Decode(&forwarded))
	taken := 0
	for i := range 260 { // which are more than are taken
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i%8))}}
		if conn, err := dialer.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", forwarded.EPort)); err == nil {
			defer conn.Close()
			taken++
		}
	}
	require.Greater(t, taken, 20)
	for _, url := range []string{gateway, api + "/webspace/self"} {
		for i := range 520 {
			source := "127.0.0.1"
			if i%2 == 1 {
				source = fmt.Sprintf("127.0.2.%d", i%32)
			}
			_, err := ask(from(source), url, "", "bob") // each has a connection of its own, which it keeps
			require.NoError(t, err)
		}
	}
	for _, source := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		code, err := ask(from(source), gateway, "alice.localhost", "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, code, "the gateway, from %s", source)
		code, err = ask(from(source), api+"/webspace/self", "", "alice")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, code, "the API, from %s", source)
	}
	stop()
	require.NotContains(t, errs.String(), "too many open files")
}
