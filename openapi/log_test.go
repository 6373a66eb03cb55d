package openapi_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAccessLog(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	send := func(token, id, path string) (requestID, line string) {
		before := len(a.log.String())
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("X-Request-Id", id)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp := a.do(t, req)
		for line := range strings.Lines(a.log.String()[before:]) {
			if strings.Contains(line, "msg=request ") {
				return resp.Header.Get("X-Request-Id"), line
			}
		}
		t.Fatal("no line")
		return "", ""
	}

	id, line := send("alice-token", "from-the-client.1", "/v1/webspace/self?secret=hunter2")
	require.Len(t, id, 26)
	for _, want := range []string{"user=1000", "username=alice", "status=200", "method=GET", "path=/v1/webspace/self ", "request_id=" + id, "client_request_id=from-the-client.1"} {
		require.Contains(t, line, want)
	}
	other, line := send("alice-token", strings.Repeat("x", 65), "/v1/webspace/alice")
	require.NotEqual(t, id, other)
	require.NotContains(t, line, "client_request_id")

	// Nobody is called what they only say they are.
	_, line = send("alice-toke", "x y", "/v1/webspace/alice")
	require.Contains(t, line, "status=401")
	require.NotContains(t, line, "user=")
	require.NotContains(t, line, "client_request_id")
	_, line = send("bob-token", "x\" level=ERROR", "/v1/webspace/alice")
	require.Contains(t, line, "status=403")
	require.Contains(t, line, "user=1001")
	require.NotContains(t, line, "client_request_id")
	_, line = send("", "", "/"+strings.Repeat("x", 10_000))
	require.Less(t, len(line), 1000)
	_, line = send("", "", "/a%0Alevel=ERROR")
	require.Equal(t, 1, strings.Count(line, "\n"))

	for _, secret := range []string{"alice-toke", "bob-token", "hunter2"} {
		require.NotContains(t, a.log.String(), secret)
	}
}
