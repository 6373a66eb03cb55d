package testbed_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

func TestTraefik(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "behind Traefik")
	}))
	defer server.Close()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x.yml"), fmt.Appendf(nil, `
http:
  routers: {x: {rule: "PathPrefix(%[1]s/%[1]s)", service: x}}
  services: {x: {loadBalancer: {servers: [{url: %[2]q}]}}}
`, "`", server.URL), 0o644))

	p := testbed.Traefik(t, "--providers.file.directory="+dir)
	answers := func() bool {
		response, err := http.Get("http://" + p.Web)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return err == nil && string(body) == "behind Traefik"
	}
	require.Eventually(t, answers, 20*time.Second, 20*time.Millisecond)
	p.Stop()
	require.False(t, answers())
	p.Restart(t)
	require.Eventually(t, answers, 20*time.Second, 20*time.Millisecond)
	p.Kill()
	require.False(t, answers())
}
