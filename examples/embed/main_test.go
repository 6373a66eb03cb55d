package main_test

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The example is built and run as a reader would: the first request to alice's name boots her webspace.
func TestEmbed(t *testing.T) {
	program := filepath.Join(t.TempDir(), "embed")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)

	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "DIRECTORY="+filepath.Join(t.TempDir(), "webspaces"), "LISTEN=127.0.0.1:0")
	logs, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	stop := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()

	address := ""
	lines := bufio.NewScanner(logs)
	for address == "" && lines.Scan() {
		if found := regexp.MustCompile(`is at (\S+),`).FindStringSubmatch(lines.Text()); found != nil {
			address = found[1]
		}
	}
	require.NotEmpty(t, address)
	go func() { _, _ = io.Copy(io.Discard, logs) }()

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address, nil)
	require.NoError(t, err)
	req.Host = "alice.localhost"
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", body)
	require.Contains(t, string(body), "ws-u1000")

	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, cmd.Wait())
}
