package openapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// terminalServer serves an API on a real port, where alice has a webspace that is stopped.
func terminalServer(t *testing.T, runtime webspace.Runtime, opts *openapi.Options) (*api, string) {
	t.Helper()
	if opts == nil {
		opts = new(openapi.Options)
	}
	opts.Limits = openapi.Limits{Rate: -1, ExpensiveRate: -1}
	a := newAPIOn(t, runtime, opts)
	server := httptest.NewServer(a.Handler)
	t.Cleanup(server.Close)
	_, err := a.manager.Create(t.Context(), accounts[0].User, webspace.CreateRequest{Image: "hello"})
	require.NoError(t, err)
	return a, "ws" + strings.TrimPrefix(server.URL, "http") + "/v1/webspace/self/"
}

// client is one end of a terminal.
type client struct {
	*testing.T
	*websocket.Conn
	shown strings.Builder
}

func dialTerminal(t *testing.T, url, token string, first string) *client {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial(url, http.Header{"Authorization": {"Bearer " + token}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	c := &client{T: t, Conn: conn}
	if first != "" {
		c.send(first)
	}
	return c
}

func (c *client) send(text string) {
	c.Helper()
	require.NoError(c, c.WriteMessage(websocket.TextMessage, []byte(text)))
}

func (c *client) write(bytes string) {
	c.Helper()
	require.NoError(c, c.WriteMessage(websocket.BinaryMessage, []byte(bytes)))
}

// until reads until a text is shown.
func (c *client) until(text string) {
	c.Helper()
	for !strings.Contains(c.shown.String(), text) {
		require.NoError(c, c.SetReadDeadline(time.Now().Add(time.Minute)))
		_, message, err := c.ReadMessage()
		require.NoError(c, err, "shown: %q", c.shown.String())
		c.shown.Write(message)
	}
}

// closed reads until the end, and requires it to have a code; it returns the reason.
func (c *client) closed(code int) string {
	c.Helper()
	require.NoError(c, c.SetReadDeadline(time.Now().Add(time.Minute)))
	for {
		_, message, err := c.ReadMessage()
		if err == nil {
			c.shown.Write(message)
			continue
		}
		var end *websocket.CloseError
		require.ErrorAs(c, err, &end)
		require.Equal(c, code, end.Code, end.Text)
		return end.Text
	}
}

func execMessage(command ...string) string {
	data, err := json.Marshal(map[string]any{"command": command, "width": 100, "height": 30})
	if err != nil {
		panic(err)
	}
	return string(data)
}

func newFake(t *testing.T) *runtimetest.Fake {
	f := runtimetest.NewFake(nil)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func TestTerminal(t *testing.T) {
	a, url := terminalServer(t, newFake(t), nil)
	c := dialTerminal(t, url+"exec", "alice-token", execMessage("sh", "-c", "echo hello; stty size; cat; exit 3"))
	c.until("hello\n30 100\n") // the webspace was started
	state, err := a.manager.State(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, webspace.StatusRunning, state.Status)
	c.write("typed")
	c.until("typed")
	c.send(`{"signal":9}`)
	require.Equal(t, "137", c.closed(websocket.CloseNormalClosure))

	c = dialTerminal(t, url+"exec", "alice-token", execMessage("sh", "-c", "stty size; sleep 0.5; stty size; exit 3"))
	c.until("30 100\n")
	c.send(`{"resize":{"width":120,"height":40}}`)
	require.Equal(t, "3", c.closed(websocket.CloseNormalClosure))
	require.Equal(t, "30 100\n40 120\n", c.shown.String())

	c = dialTerminal(t, url+"exec", "alice-token", `{"command":["sh","-c","pwd;id -u;printenv A;printenv TERM;stty size"],
		"user":1000,"group":1000,"environment":{"A":"b c"},"workingDirectory":"/home"}`)
	require.Equal(t, "0", c.closed(websocket.CloseNormalClosure))
	require.Equal(t, "/home\n1000\nb c\nxterm\n24 80\n", c.shown.String())

	c = dialTerminal(t, url+"exec", "alice-token", execMessage("no-such-command"))
	require.Equal(t, "127", c.closed(websocket.CloseNormalClosure))
}

func TestConsole(t *testing.T) {
	fake := newFake(t)
	a, url := terminalServer(t, fake, nil)
	c := dialTerminal(t, url+"console", "alice-token", `{"width":100,"height":30}`)
	c.write("stty size\r")
	c.until("30 100\n")
	c.send(`{"width":120,"height":40}`)
	for !strings.Contains(c.shown.String(), "40 120\n") {
		c.write("stty size\r")
		_, message, err := c.ReadMessage()
		require.NoError(t, err)
		c.shown.Write(message)
	}
	require.True(t, fake.Print("ws-u1000", "the disk is full"))
	c.until("the disk is full\n")
	require.NoError(t, a.manager.Delete(t.Context(), 1000))
	require.Empty(t, c.closed(websocket.CloseNormalClosure))
}

// Whatever the client sends, it is told what is wrong with it.
func TestTerminalBadMessages(t *testing.T) {
	_, url := terminalServer(t, newFake(t), nil)
	cat := execMessage("cat")
	for _, test := range []struct{ path, first, then, reason string }{
		{"exec", "", "", "first message is not text"}, // a binary one
		{"exec", "{", "", "not a JSON object"},
		{"exec", "[]", "", "not a JSON object"},
		{"exec", cat + cat, "", "not a JSON object"},
		{"exec", `{}`, "", "command: it is empty"},
		{"exec", `{"command":[]}`, "", "command: it is empty"},
		{"exec", `{"command":[""]}`, "", "command: it is empty"},
		{"exec", `{"command":"sh"}`, "", "command"},
		{"exec", `{"command":["a\u0000"]}`, "", "NUL"},
		{"exec", `{"command":["cat"],"tty":true}`, "", `unknown field "tty"`},
		{"exec", `{"command":["cat"],"user":-1}`, "", "user"},
		{"exec", `{"command":["cat"],"group":4294967296}`, "", "group"},
		{"exec", `{"command":["cat"],"environment":{"A=B":"c"}}`, "", "environment"},
		{"exec", `{"command":["cat"],"environment":{"A":1}}`, "", "environment"},
		{"exec", `{"command":["cat"],"workingDirectory":"tmp"}`, "", "workingDirectory"},
		{"exec", `{"command":["cat"],"width":-1}`, "", "width: -1"},
		{"exec", `{"command":["cat"],"height":1000000000}`, "", "height: 1000000000"},
		{"exec", `{"command":["cat"],"height":99999999999999999999}`, "", "height"},
		{"exec", cat, "{", "not a JSON object"},
		{"exec", cat, "{}", "resize and signal"},
		{"exec", cat, `{"resize":{"width":1,"height":1},"signal":9}`, "resize and signal"},
		{"exec", cat, `{"resize":{"width":0,"height":24}}`, "width: 0"},
		{"exec", cat, `{"resize":{"width":80}}`, "height: 0"},
		{"exec", cat, `{"resize":{"width":80,"height":1000000000}}`, "height: 1000000000"},
		{"exec", cat, `{"resize":{"width":80,"height":24,"depth":3}}`, "depth"},
		{"exec", cat, `{"signal":0}`, "signal: 0"},
		{"exec", cat, `{"signal":65}`, "signal: 65"},
		{"exec", cat, `{"signal":"KILL"}`, "signal"},
		{"console", `{"command":["cat"]}`, "", `unknown field "command"`},
		{"console", `{"width":5000}`, "", "width: 5000"},
		{"console", `{}`, `{"resize":{"width":80,"height":24}}`, `unknown field "resize"`},
		{"console", `{}`, `{"width":0,"height":0}`, "width: 0"},
	} {
		t.Run(test.path+test.first+test.then, func(t *testing.T) {
			c := dialTerminal(t, url+test.path, "alice-token", test.first)
			if test.first == "" {
				c.write("ls\n")
			}
			if test.then != "" {
				c.send(test.then)
			}
			require.Contains(t, c.closed(websocket.CloseInternalServerErr), test.reason)
		})
	}
	for _, first := range []bool{true, false} {
		c := dialTerminal(t, url+"exec", "alice-token", "")
		if !first {
			c.send(cat)
		}
		c.send(strings.Repeat("x", 64<<10+1))
		c.closed(websocket.CloseMessageTooBig)
	}
	// No frames at all.
	c := dialTerminal(t, url+"exec", "alice-token", cat)
	_, err := c.NetConn().Write([]byte(strings.Repeat("\xff", 100)))
	require.NoError(t, err)
	c.closed(websocket.CloseProtocolError)
}

func TestTerminalHandshake(t *testing.T) {
	a, url := terminalServer(t, newFake(t), &openapi.Options{AllowedOrigins: []string{"https://dashboard.example.org"}})
	host := strings.TrimPrefix(strings.TrimSuffix(url, "/v1/webspace/self/"), "ws://")
	for _, test := range []struct {
		path, token, origin string
		status              int
	}{
		{"self/exec", "alice-token", "", 101},
		{"self/console", "alice-token", "", 101},
		{"alice/exec", "admin-token", "", 101},
		{"self/exec", "alice-token", "https://dashboard.example.org", 101},
		{"self/exec", "alice-token", "http://" + host, 101},
		{"self/exec", "alice-token", "https://alice.example.org", 403},
		{"self/exec", "alice-token", "null", 403},
		{"self/exec", "alice-token", "http://" + host + ".example.org", 403},
		{"alice/exec", "bob-token", "", 403},
		{"self/exec", "bob-token", "", 404},
		{"self/exec", "alice", "", 401},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			header := http.Header{"Authorization": {"Bearer " + test.token}}
			if test.origin != "" {
				header.Set("Origin", test.origin)
			}
			conn, resp, err := websocket.DefaultDialer.Dial("ws://"+host+"/v1/webspace/"+test.path, header)
			require.Equal(t, test.status, resp.StatusCode)
			if test.status == 101 {
				require.NoError(t, err)
				require.NoError(t, conn.Close())
				return
			}
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), `"message"`)
		})
	}
	for name, change := range map[string]func(http.Header){
		"no websocket": func(h http.Header) { h.Del("Upgrade") },
		"old version":  func(h http.Header) { h.Set("Sec-WebSocket-Version", "8") },
		"no key":       func(h http.Header) { h.Del("Sec-WebSocket-Key") },
		"short key":    func(h http.Header) { h.Set("Sec-WebSocket-Key", "eA==") },
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+host+"/v1/webspace/self/exec", nil)
			require.NoError(t, err)
			for name, value := range map[string]string{
				"Authorization": "Bearer alice-token", "Connection": "Upgrade", "Upgrade": "websocket",
				"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
			} {
				req.Header.Set(name, value)
			}
			change(req.Header)
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			require.Equal(t, 400, resp.StatusCode)
			require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		})
	}
	state, err := a.manager.State(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, webspace.StatusStopped, state.Status, "nothing has happened")
}

// A runtime without the optional powers.
func TestNoTerminals(t *testing.T) {
	_, url := terminalServer(t, struct{ webspace.Runtime }{newFake(t)}, nil)
	for path, first := range map[string]string{"exec": execMessage("cat"), "console": "{}"} {
		c := dialTerminal(t, url+path, "alice-token", first)
		require.Contains(t, c.closed(websocket.CloseInternalServerErr), "can not do this")
	}
}

// half returns a connection with a finished handshake that says nothing.
func half(t *testing.T, url string) net.Conn {
	t.Helper()
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	conn, _, err := dialer.Dial(url, http.Header{"Authorization": {"Bearer alice-token"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.NetConn()
}
