package metrics_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// expressions are those of the dashboard, by the title of the panel.
func expressions(t *testing.T) map[string][]string {
	data, err := os.ReadFile("../deploy/grafana/webspaced.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &dashboard))
	all := map[string][]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			all[panel.Title] = append(all[panel.Title], target.Expr)
		}
	}
	require.NotEmpty(t, all)
	return all
}

var metricName = regexp.MustCompile(`\b(webspaced|process|go)_[a-z_]+`)

// TestDashboardUsesWhatThereIs: a metric that is renamed is renamed in the dashboard and in the documentation's alerts.
func TestDashboardUsesWhatThereIs(t *testing.T) {
	w := newWorld(t, 1, nil, nil)
	w.call(0, "GET", "/v1/webspace/self")
	samples, _ := w.scrape(t)
	exists := map[string]bool{}
	for sample := range samples {
		name, _, _ := strings.Cut(sample, "{")
		exists[name] = true
	}
	page, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	_, alerts, found := strings.Cut(string(page), "## What to be woken by")
	require.True(t, found)
	all := expressions(t)
	all["docs/metrics.md"] = []string{alerts}
	for title, list := range all {
		for _, expression := range list {
			names := metricName.FindAllString(expression, -1)
			require.NotEmpty(t, names, title)
			for _, name := range names {
				require.True(t, exists[name], "%s: there is no %s", title, name)
			}
		}
	}
}

// TestDashboardInPrometheus has a real Prometheus scrape while there is something to see, and evaluate all of the dashboard.
func TestDashboardInPrometheus(t *testing.T) {
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("prometheus is missing: test/install installs it")
		}
		t.Skip("needs prometheus: on Debian, test/install installs it")
	}
	w := newWorld(t, 30, nil, &proxy.HoldLimits{Wakes: -1})
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 200ms, scrape_timeout: 200ms}
scrape_configs: [{job_name: webspaced, static_configs: [{targets: ['%s']}]}]
`, w.serve(t)), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	cmd := exec.Command(binary, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("Prometheus said:\n%s", said)
		}
	}()

	// A boot each round, so that there always are rates.
	next := 0
	act := func() {
		if next < len(w.accounts) {
			w.create(t, next)
			require.Equal(t, 200, w.visit(next))
			require.Equal(t, 200, w.call(next, "GET", "/v1/webspace/self").Code)
			next++
		}
	}
	client := &http.Client{Timeout: 5 * time.Second}
	placeholders := strings.NewReplacer("$__rate_interval", "1m", "$job", "webspaced")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		act()
		for title, list := range expressions(t) {
			for _, expression := range list {
				query := placeholders.Replace(expression)
				response, err := client.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(query))
				require.NoError(c, err)
				var answer struct {
					Status, Error string
					Data          struct{ Result []json.RawMessage }
				}
				err = json.NewDecoder(response.Body).Decode(&answer)
				_ = response.Body.Close()
				require.NoError(c, err)
				require.Equal(c, "success", answer.Status, "%s: %s: %s", title, query, answer.Error)
				require.NotEmpty(c, answer.Data.Result, "%s: no data for %s", title, query)
			}
		}
	}, time.Minute, 300*time.Millisecond)
}
