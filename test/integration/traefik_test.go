package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
)

// prompt is the hello image with an init that powers off at once. Busybox' own takes two seconds, a hundred times.
var prompt = testbed.Image{Files: map[string]string{"sbin/init": `#!/bin/sh
trap 'poweroff -f' USR2
/etc/boot
udhcpc -f -i eth0 -s /etc/udhcpc.sh &
httpd -f -p 80 -h /www &
while :; do sleep 3600 & wait $!; done
`}}

// edge is a daemon, and a Traefik in front that reads what it writes.
type edge struct {
	*daemon
	cluster *cluster // nil without Kubernetes
	proxy   *testbed.Proxy
}

var providers = []string{"file", "redis", "http", "kubernetes"}

// startEdge starts one with that provider. prefix is that of instances; env goes before the configuration.
func startEdge(t *testing.T, e *testbed.Engine, prefix, provider string, env ...string) *edge {
	t.Helper()
	if provider == "kubernetes" {
		return startCluster(t, e, prefix, env)
	}
	config, flags := traefiktest.Between(t, provider)
	return &edge{proxy: follower(t, flags), daemon: startDaemon(t, e, prefix, func(gateway string) string {
		return fmt.Sprintf("traefik: {provider: %s, webspaced_url: 'http://%s', %s}\n", provider, gateway, config)
	}, env...)}
}

// follower starts a Traefik that waits but a moment for more changes to come: by default it is 2 s.
func follower(t *testing.T, flags []string) *testbed.Proxy {
	t.Helper()
	return testbed.Traefik(t, append(flags, "--providers.providersthrottleduration=50ms")...)
}

// Webspaces are started and stopped through the API while visitors come through a real Traefik: none gets an error. CYCLES in
// the environment says how often.
func TestTraefik(t *testing.T) {
	cycles := 25
	if n, err := strconv.Atoi(os.Getenv("CYCLES")); err == nil {
		cycles = n
	}
	e := testbed.LXD(t)
	e.ImportImage(t, "prompt", prompt)
	// All at once, also on two processors: most of the time they wait.
	var all sync.WaitGroup
	defer all.Wait()
	for _, provider := range providers {
		for _, mode := range []string{"direct", "inline"} {
			all.Go(func() {
				t.Run(provider+"/"+mode, func(t *testing.T) { startsAndStops(t, e, provider, mode, cycles) })
			})
		}
	}
}

func startsAndStops(t *testing.T, e *testbed.Engine, provider, mode string, cycles int) {
	prefix := e.Prefix + provider + "-" + mode + "-"
	// Less than by default, and more than Traefik takes on a busy machine.
	edge := startEdge(t, e, prefix, provider, "WSD_TRAEFIK_MODE="+mode, "WSD_TRAEFIK_SETTLE=2s")
	d, web, alice := edge.daemon, edge.proxy.Web, prefix+"u1000"
	t.Cleanup(func() { e.Delete(t, alice) })
	d.create(t, "alice", "prompt")
	followed(t, web)
	answered(t, web, "alice", alice)

	load, stop := context.WithCancel(t.Context())
	defer stop()
	visitors := visitors(load, web, 4)
	started := time.Now()
	for range cycles {
		// A visitor may boot it again before we look, and may do so before we start it.
		require.Contains(t, []int{http.StatusNoContent, http.StatusNotFound}, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
		require.Contains(t, []int{http.StatusNoContent, http.StatusConflict}, d.do(t, "alice", "POST", "/webspace/self/state", nil, nil))
	}
	took := time.Since(started)
	stop()
	count, failures := visitors()
	t.Logf("%d requests over %d cycles of %v", count, cycles, (took / time.Duration(cycles)).Round(time.Millisecond))
	require.Empty(t, failures)
	require.Greater(t, count, cycles)

	if mode == "direct" {
		siteSurvives(t, d, web, alice)
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
				began := time.Now()
				status, body, err := visit(context.WithoutCancel(ctx), web, "alice.ws.example.test")
				mu.Lock()
				count++
				if (err != nil || status != http.StatusOK) && len(failures) < 10 {
					failures = append(failures, fmt.Sprintf("%s, after %v: %d %s %v",
						began.Format("15:04:05.000"), time.Since(began), status, body, err))
				}
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	return func() (int, []string) {
		wg.Wait()
		return count, failures
	}
}
