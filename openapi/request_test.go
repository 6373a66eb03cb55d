package openapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var quiet = slog.New(slog.DiscardHandler)

func TestBadBodies(t *testing.T) {
	a := newAPI(t, nil)
	for body, want := range map[string]string{
		``:                                    "the body: missing, or not JSON",
		`{`:                                   "the body: missing, or not JSON",
		`null`:                                "the body",
		`[]`:                                  "the body",
		`"hello"`:                             "the body",
		`{}`:                                  `image: property \"image\" is missing`,
		`{"image":5}`:                         "image: value must be a string",
		`{"image":null}`:                      "image",
		`{"image":""}`:                        "image: minimum string length is 1",
		`{"image":"hello","ssh":"yes"}`:       "ssh: value must be a boolean",
		`{"image":"hello","sshd":true}`:       `property \"sshd\" is unsupported`,
		`{"IMAGE":"hello"}`:                   `property \"IMAGE\" is unsupported`,
		`{"image":"../1.0/instances"}`:        "image",
		`{"image":"hello?project=other"}`:     "image",
		`{"image":"` + "\xff\x00" + `hello"}`: "the body",
		`{"image":"` + strings.Repeat("x", 300) + `"}`: "image: maximum string length is 256",
	} {
		resp := a.as(t, "alice-token", "POST", "/v1/webspace/self", body)
		text := bodyOf(t, resp)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, "%q: %s", body, text)
		require.Contains(t, text, want, "%q", body)
	}
	for body, want := range map[string]string{
		`{"httpPort":"80"}`:         "httpPort",
		`{"httpPort":0}`:            "httpPort",
		`{"httpPort":65536}`:        "httpPort",
		`{"httpPort":80.5}`:         "httpPort",
		`{"httpPort":1e99}`:         "httpPort",
		`{"httpPort":8e1}`:          "httpPort: this value",
		`{"httpPort":null}`:         "httpPort",
		`{"startupDelay":-1}`:       "startupDelay",
		`{"startupDelay":1e400}`:    "",
		`{"startup_delay":1}`:       "startup_delay",
		`{"sniPassthrough":0}`:      "sniPassthrough",
		`{"httpPort":80,"user":42}`: "user",
	} {
		resp := a.as(t, "alice-token", "PATCH", "/v1/webspace/self/config", body)
		text := bodyOf(t, resp)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, "%q: %s", body, text)
		require.Contains(t, text, want, "%q", body)
	}
	resp := a.as(t, "alice-token", "PATCH", "/v1/webspace/self/config", `{"httpPort":"hunter2"}`)
	require.NotContains(t, bodyOf(t, resp), "hunter2", "values are not repeated")
}

func TestHugeBody(t *testing.T) {
	a := newAPI(t, nil)
	for _, body := range []string{strings.Repeat(" ", 1<<20), `{"image":"` + strings.Repeat("x", 1<<20) + `"}`} {
		resp := a.as(t, "alice-token", "POST", "/v1/webspace/self", body)
		require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
		resp = a.as(t, "", "POST", "/v1/webspace/self", body)
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "without a token nothing is read")
	}
}

// TestSlowBody promises a body, where none is needed too, and never sends it.
func TestSlowBody(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	address := strings.TrimPrefix(serveAPI(t, a), "http://")
	for _, line := range []string{"POST /v1/webspace/self/state", "POST /v1/webspace/bob", "PATCH /v1/webspace/self/config", "GET /v1/images"} {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		_, err = fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-token\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", line)
		require.NoError(t, err)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "it is cut off")
		require.Contains(t, string(answer), " 400 ", line)
		require.NoError(t, conn.Close())
	}
	state, err := a.manager.State(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, webspace.StatusStopped, state.Status)
}

func TestContentType(t *testing.T) {
	a := newAPI(t, nil)
	send := func(kind string) int {
		req := httptest.NewRequest("POST", "/v1/webspace/self", strings.NewReader(`{"image":"hello"}`))
		req.Header.Set("Authorization", "Bearer alice-token")
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		return a.do(t, req).StatusCode
	}
	require.Equal(t, 201, send(""))
	for _, kind := range []string{"application/json", "Application/JSON; charset=utf-8"} {
		require.Equal(t, 409, send(kind), kind)
	}
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "/", "application/json, text/plain"} {
		require.Equal(t, 415, send(kind), kind)
	}
}

func TestBadPaths(t *testing.T) {
	a := newAPI(t, nil)
	for _, path := range []string{
		"/", "/v1", "/v1/", "/v1/webspace", "/v1/webspace/", "/v1/webspace/self/", "/v1/webspace//state", "/v2/images", "/health/",
		"/v1/webspace/..", "/v1/webspace/../images", "/v1/webspace/self/../../images", "/v1//images", "//v1/images", "/v1/webspace/./self",
		"/v1/webspace/%2e%2e", "/v1/webspace/..%2f..%2fhealth", "/v1/webspace/self%00", "/v1/webspace/a%2f..%2fself",
	} {
		for _, token := range []string{"admin-token", ""} {
			resp := a.as(t, token, "GET", path, "")
			require.Equal(t, http.StatusNotFound, resp.StatusCode, path)
		}
	}
	for _, name := range []string{"a\nb", "a\x7fb", "a/b", "\r\n", strings.Repeat("x", 1<<20), " ", "ws-u1000", "1000", "id:1000", "alice.", "%", "alice?x", "ALICE", "ålice"} {
		req := httptest.NewRequest("GET", "/v1/webspace/"+url.PathEscape(name), nil)
		req.Header.Set("Authorization", "Bearer admin-token")
		rec := httptest.NewRecorder()
		a.ServeHTTP(rec, req)
		require.Equal(t, http.StatusNotFound, rec.Code, "%.20q", name)
		require.Less(t, rec.Body.Len(), 1000)
	}
	resp := a.as(t, "admin-token", "PATCH", "/v1/webspace/self", "")
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	require.Contains(t, resp.Header.Get("Allow"), "DELETE")
}

// TestBadPlaces sends what is no port and no domain in their places in paths. The answer names the place, and nothing
// has changed.
func TestBadPlaces(t *testing.T) {
	a := newAPI(t, nil)
	createAlice(t, a)
	before, err := a.manager.Get(t.Context(), 1000)
	require.NoError(t, err)
	huge := strings.Repeat("9", 1<<20)
	for _, port := range []string{"-1", "0", "65536", "99999999999999999999", "-9223372036854775809", "1e3", "0x10", "22.5", "abc", "%00", "%0a", "22%2f..", "%F0%9F%98%80", huge} {
		for place, paths := range map[string][]string{
			"port":  {"POST /v1/webspace/self/ports/" + port, "DELETE /v1/webspace/self/ports/" + port},
			"ePort": {"POST /v1/webspace/self/ports/" + port + "/22"},
			"iPort": {"POST /v1/webspace/self/ports/60000/" + port},
		} {
			for _, line := range paths {
				method, path, _ := strings.Cut(line, " ")
				resp := a.as(t, "alice-token", method, path, "")
				text := bodyOf(t, resp)
				if resp.StatusCode == 404 && strings.Contains(port, "%") {
					continue // it is another path
				}
				require.Equal(t, 400, resp.StatusCode, "%.100s: %s", line, text)
				require.Contains(t, text, place)
				require.Less(t, len(text), 1000)
				require.Equal(t, 401, a.as(t, "", method, path, "").StatusCode, "%.100s", line)
			}
		}
	}
	for _, domain := range []string{"%0a", "a%00b.com", "a%2f..%2fb.com", "..com", "a..b", "*.com", "%60%7c%7c.com", strings.Repeat("a.", 1<<19) + "com", "example.com:80", "user@example.com"} {
		resp := a.as(t, "alice-token", "POST", "/v1/webspace/self/domains/"+domain, "")
		text := bodyOf(t, resp)
		require.Contains(t, []int{400, 404}, resp.StatusCode, "%.100s: %s", domain, text)
		require.Less(t, len(text), 1000)
	}
	for _, body := range []string{``, `{}`, `{"command":""}`, `{"command":5}`, `{"command":["ls"]}`, `{"command":"ls","user":0}`, `{"command":"a\u0000b"}`, `{"command":" "}`} {
		resp := a.as(t, "alice-token", "POST", "/v1/webspace/self/exec", body)
		require.Equal(t, 400, resp.StatusCode, body)
	}
	after, err := a.manager.Get(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, before, after)
	state, err := a.manager.State(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, webspace.StatusStopped, state.Status)
}

// FuzzHandler sends what the document's examples become when they are mutated. Without a fault of the runtime nothing is
// a fault of the server, and without a token nothing changes.
func FuzzHandler(f *testing.F) {
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Document())
	require.NoError(f, err)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			path := strings.NewReplacer("{username}", "self", "{domain}", "example.com", "{port}", "60000", "{ePort}", "60000", "{iPort}", "22").Replace(path)
			if op.RequestBody == nil {
				f.Add(method, path, "", true)
				continue
			}
			for _, example := range op.RequestBody.Value.Content["application/json"].Examples {
				body, err := json.Marshal(example.Value.Value)
				require.NoError(f, err)
				f.Add(method, path, string(body), true)
				f.Add(method, path, string(body), false)
			}
		}
	}
	a := newAPIOn(f, runtimetest.NewFake(nil), &openapi.Options{Logger: quiet, Limits: openapi.Limits{Rate: -1, ExpensiveRate: -1}})
	f.Fuzz(func(t *testing.T, method, path, body string, token bool) {
		u, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") || method == "CONNECT" {
			t.Skip()
		}
		if _, err := http.NewRequest(method, "http://x/", nil); err != nil || method == "" {
			t.Skip()
		}
		req := httptest.NewRequest(method, "/", strings.NewReader(body))
		req.URL = u
		if token {
			req.Header.Set("Authorization", "Bearer alice-token")
		}
		before, err := a.manager.Get(context.Background(), 1000)
		rec := httptest.NewRecorder()
		ctx, leave := context.WithTimeout(context.Background(), 10*time.Second) // "sleep 99999" is a command, too
		defer leave()
		a.ServeHTTP(leaving{rec, leave}, req.WithContext(ctx))
		if ctx.Err() != nil {
			return
		}
		if rec.Code != http.StatusNotImplemented {
			require.Less(t, rec.Code, 500, "%s", rec.Body)
		}
		if !token {
			after, errAfter := a.manager.Get(context.Background(), 1000)
			require.Equal(t, before, after)
			require.Equal(t, err == nil, errAfter == nil)
		}
	})
}
