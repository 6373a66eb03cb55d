package openapi_test

import (
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/openapi"
)

func TestCORS(t *testing.T) {
	users, err := static.New(nil)
	require.NoError(t, err)
	const dashboard = "https://dashboard.example.org"
	for name, test := range map[string]struct {
		allowed []string
		origin  string
		want    bool
	}{
		"nobody by default": {nil, dashboard, false},
		"listed":            {[]string{"https://a.example.org", dashboard}, dashboard, true},
		"not listed":        {[]string{"https://a.example.org"}, dashboard, false},
		"part of one":       {[]string{dashboard + ".evil.example"}, dashboard, false},
		"null":              {[]string{dashboard}, "null", false},
		"all":               {[]string{"*"}, dashboard, true},
		"no origin":         {[]string{"*"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := openapi.NewServer(nil, users, users, &openapi.Options{Logger: quiet, AllowedOrigins: test.allowed})
			for _, method := range []string{"OPTIONS", "GET"} {
				req := httptest.NewRequest(method, "/v1/webspace/self", nil)
				if test.origin != "" {
					req.Header.Set("Origin", test.origin)
				}
				if method == "OPTIONS" {
					req.Header.Set("Access-Control-Request-Method", "DELETE")
				}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, req)
				require.Empty(t, rec.Header().Get("Access-Control-Allow-Credentials"))
				if test.want {
					require.Equal(t, test.origin, rec.Header().Get("Access-Control-Allow-Origin"))
				} else {
					require.Empty(t, rec.Header().Get("Access-Control-Allow-Origin"))
				}
				switch {
				case method == "GET":
					require.Equal(t, 401, rec.Code, "CORS is no authentication")
				case test.want:
					require.Equal(t, 204, rec.Code)
					require.Contains(t, rec.Header().Get("Access-Control-Allow-Methods"), "DELETE")
				default:
					require.Equal(t, 405, rec.Code)
				}
			}
		})
	}
}
