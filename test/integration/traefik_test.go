package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

const cycles = 100

// prompt is the hello image with an init that powers off at once. Busybox' own takes two seconds, a hundred times.
var prompt = testbed.Image{Files: map[string]string{"sbin/init": `#!/bin/sh
trap 'poweroff -f' USR2
/etc/boot
udhcpc -f -i eth0 -s /etc/udhcpc.sh &
httpd -f -p 80 -h /www &
while :; do sleep 3600 & wait $!; done
`}}

// Webspaces are started and stopped through the API while visitors come through a real Traefik: none gets an error.
func TestTraefik(t *testing.T) {
	e := testbed.LXD(t)
	e.ImportImage(t, "prompt", prompt)
	for i, mode := range []string{"direct", "inline"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			prefix := fmt.Sprintf("%s%d-", e.Prefix, i)
			dir := t.TempDir()
			proxy := testbed.Traefik(t, "--providers.file.directory="+dir, "--providers.file.watch=true",
				// What Traefik waits for to collect changes is 2 s by default. webspaced waits for settle.
				"--providers.providersthrottleduration=50ms")
			d := startDaemon(t, e, prefix, func(gateway string) string {
				return fmt.Sprintf(`
traefik:
  provider: file
  mode: %s
  file: {directory: %s}
  webspaced_url: http://%s
  settle: 500ms
`, mode, dir, gateway)
			})
			alice := prefix + "u1000"
			t.Cleanup(func() { e.Delete(t, alice) })
			d.create(t, "alice", "prompt")
			followed(t, proxy.Web)
			answered(t, proxy.Web, "alice", alice)

			load, stop := context.WithCancel(t.Context())
			defer stop()
			visitors := visitors(load, proxy.Web, 4)
			for range cycles {
				// A visitor may boot it again before we look, and may do so before we start it.
				require.Contains(t, []int{http.StatusNoContent, http.StatusNotFound}, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
				require.Contains(t, []int{http.StatusNoContent, http.StatusConflict}, d.do(t, "alice", "POST", "/webspace/self/state", nil, nil))
			}
			stop()
			count, failures := visitors()
			t.Logf("%d requests over %d cycles", count, cycles)
			require.Empty(t, failures)
			require.Greater(t, count, cycles)

			if mode == "direct" {
				siteSurvives(t, d, proxy.Web, alice)
			}
		})
	}
}

// siteSurvives kills the daemon: a site that runs stays up. Then it stops, behind the daemon's back.
func siteSurvives(t *testing.T, d *daemon, web, alice string) {
	answered(t, web, "alice", alice)
	// Once the route points at the instance, the gateway sees no more requests.
	require.Eventually(t, func() bool {
		d.kill()
		status, _, err := visit(t.Context(), web, "alice.ws.example.test")
		if err == nil && status == http.StatusOK {
			return true
		}
		d.start(t)
		answered(t, web, "alice", alice)
		return false
	}, time.Minute, 500*time.Millisecond)
	load, stop := context.WithCancel(t.Context())
	defer stop()
	visitors := visitors(load, web, 2)
	for range 20 {
		answered(t, web, "alice", alice)
	}
	d.start(t)
	answered(t, web, "alice", alice)
	stop()
	count, failures := visitors()
	t.Logf("%d requests while the daemon was down and came back", count)
	require.Empty(t, failures)
}

// followed waits until Traefik knows alice's name.
func followed(t *testing.T, web string) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, _, err := visit(t.Context(), web, "alice.ws.example.test")
		return err == nil && status == http.StatusOK
	}, 30*time.Second, 50*time.Millisecond)
}

// visitors ask for alice's page one time after the other until ctx ends. The result waits for them.
func visitors(ctx context.Context, web string, n int) func() (count int, failures []string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	count, failures := 0, []string(nil)
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				// A request under way when the test ends is finished.
				status, body, err := visit(context.WithoutCancel(ctx), web, "alice.ws.example.test")
				mu.Lock()
				count++
				if (err != nil || status != http.StatusOK) && len(failures) < 10 {
					failures = append(failures, fmt.Sprint(time.Now().Format("15:04:05.000"), status, body, err))
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	return func() (int, []string) {
		wg.Wait()
		return count, failures
	}
}
