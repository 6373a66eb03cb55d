package openapi_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// TestPages loads what the documentation's page refers to: all of it is here.
func TestPages(t *testing.T) {
	a := newAPI(t, nil)
	resp := a.as(t, "", "GET", "/static/api.yaml", "")
	require.Equal(t, "application/yaml", resp.Header.Get("Content-Type"))
	require.Equal(t, string(openapi.Document()), bodyOf(t, resp))

	resp = a.as(t, "", "GET", "/swagger", "")
	require.Equal(t, 200, resp.StatusCode)
	policy := resp.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'; script-src 'self';")
	require.NotContains(t, policy, "unsafe-eval")
	page := bodyOf(t, resp)
	require.NotContains(t, page, "://", "nothing from other hosts")
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page, -1)
	require.NotEmpty(t, links)
	for _, link := range links {
		resp := a.as(t, "", "GET", link[1], "")
		require.Equal(t, 200, resp.StatusCode, link[1])
		require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		plain := bodyOf(t, resp)
		require.NotEmpty(t, plain)

		req := httptest.NewRequest("GET", link[1], nil)
		req.Header.Set("Accept-Encoding", "gzip, br")
		resp = a.do(t, req)
		if resp.Header.Get("Content-Encoding") == "gzip" {
			unzipped, err := gzip.NewReader(resp.Body)
			require.NoError(t, err)
			body, err := io.ReadAll(unzipped)
			require.NoError(t, err)
			require.Equal(t, plain, string(body))
			require.Contains(t, resp.Header.Get("Vary"), "Accept-Encoding")
		}
	}
	require.Equal(t, 404, a.as(t, "", "GET", "/swagger/oauth2-redirect.html", "").StatusCode)
	require.True(t, strings.Contains(a.as(t, "", "GET", "/v1/images", "").Header.Get("Content-Security-Policy"), "default-src 'none'; frame-ancestors"))
}

// TestMetrics: they are served to whoever asks, if there are any, and what was asked is told by operation.
func TestMetrics(t *testing.T) {
	require.Equal(t, 404, newAPI(t, nil).as(t, "", "GET", "/metrics", "").StatusCode)

	var observed []string
	runtime := runtimetest.NewFake(nil)
	t.Cleanup(func() { require.NoError(t, runtime.Close()) })
	a := newAPIOn(t, runtime, &openapi.Options{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") }),
		Observe: func(operation string, status int, _ time.Duration) {
			observed = append(observed, fmt.Sprint(operation, " ", status))
		},
	})
	require.Equal(t, "up 1\n", bodyOf(t, a.as(t, "", "GET", "/metrics", "")))
	require.Equal(t, 405, a.as(t, "", "POST", "/metrics", "").StatusCode)
	require.Equal(t, 401, a.as(t, "", "GET", "/v1/webspace/alice", "").StatusCode)
	require.Equal(t, 404, a.as(t, "alice-token", "GET", "/v1/nothing/alice", "").StatusCode)
	require.Equal(t, []string{"other 200", "other 405", "getWebspace 401", "other 404"}, observed)
}
