package openapi_test

import (
	"compress/gzip"
	"io"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
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
