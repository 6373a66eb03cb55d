package openapi_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// processes is how many an instance of the fake has while no command runs.
const idleProcesses = 3

func requireIdle(t *testing.T, a *api) {
	t.Helper()
	require.Eventually(t, func() bool {
		state, err := a.manager.State(t.Context(), 1000)
		return err == nil && state.Processes == idleProcesses
	}, 30*time.Second, 10*time.Millisecond)
}

// The command ends with the client, however that leaves.
func TestTerminalClientLeaves(t *testing.T) {
	a, url := terminalServer(t, newFake(t), nil)
	for name, leave := range map[string]func(*client){
		"goodbye": func(c *client) {
			require.NoError(t, c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(time.Second)))
			c.closed(websocket.CloseGoingAway) // its own, sent back
		},
		"cut off": func(c *client) { require.NoError(t, c.NetConn().Close()) },
	} {
		for _, command := range []string{"cat", "yes", "sh -c echo begun;sleep 300"} {
			t.Run(name+" "+command, func(t *testing.T) {
				c := dialTerminal(t, url+"exec", "alice-token", execMessage(strings.SplitN(command, " ", 3)...))
				c.write("begun\n")
				if command == "yes" {
					c.until("y")
				} else {
					c.until("begun")
				}
				leave(c)
				requireIdle(t, a)
			})
		}
	}
}

func TestTerminalsLeaveNothing(t *testing.T) {
	a, url := terminalServer(t, newFake(t), nil)
	require.NoError(t, a.manager.Start(t.Context(), 1000))
	cycle := func(n int) {
		path, first := "exec", execMessage("cat")
		if n%2 == 1 {
			path, first = "console", "{}"
		}
		conn, resp, err := websocket.DefaultDialer.Dial(url+path, http.Header{"Authorization": {"Bearer alice-token"}})
		if err != nil && resp != nil && resp.StatusCode == 429 { // earlier ones are just ending
			time.Sleep(10 * time.Millisecond)
			return
		}
		require.NoError(t, err)
		require.NoError(t, conn.WriteMessage(websocket.TextMessage, []byte(first)))
		if n%3 == 0 {
			require.NoError(t, conn.WriteMessage(websocket.BinaryMessage, []byte("typed\n")))
			_, _, err := conn.ReadMessage()
			require.NoError(t, err)
		}
		require.NoError(t, conn.Close())
	}
	for n := range 10 {
		cycle(n)
	}
	requireIdle(t, a)
	before := runtime.NumGoroutine()
	for n := range 500 {
		cycle(n)
	}
	requireIdle(t, a)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+5 }, 30*time.Second, 10*time.Millisecond)
}

// A client that does not read holds the command up, and is cut off after a while. Nothing piles up meanwhile.
func TestTerminalBackPressure(t *testing.T) {
	t.Parallel()
	fake := &flood{Fake: newFake(t)}
	a, url := terminalServer(t, fake, nil)
	c := dialTerminal(t, url+"exec", "alice-token", execMessage("flood"))
	c.until("x")
	var stats runtime.MemStats
	written := func() int64 { return fake.written.Load() }
	require.Eventually(t, func() bool { // until it is held up
		n := written()
		time.Sleep(200 * time.Millisecond)
		return written() == n
	}, 30*time.Second, time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&stats)
	require.Less(t, stats.HeapAlloc, uint64(64<<20))
	require.Less(t, written(), int64(64<<20), "only the network's buffers are full")
	require.Eventually(t, fake.ended.Load, 30*time.Second, 10*time.Millisecond)
	requireIdle(t, a)

	// The other way: a command that does not read holds the client up.
	c = dialTerminal(t, url+"exec", "alice-token", execMessage("sleep", "300"))
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(2*time.Second)))
	var err error
	sent := 0
	for chunk := make([]byte, 32<<10); err == nil && sent < 64<<20; sent += len(chunk) {
		err = c.WriteMessage(websocket.BinaryMessage, chunk)
	}
	require.Error(t, err, "%d bytes were taken", sent)
	_, _, err = c.ReadMessage() // a goodbye that this client can not answer any more
	require.Error(t, err)
	requireIdle(t, a)
}

func TestTerminalAmounts(t *testing.T) {
	fake := &flood{Fake: newFake(t), limit: 10 << 20}
	_, url := terminalServer(t, fake, nil)
	c := dialTerminal(t, url+"exec", "alice-token", execMessage("flood"))
	go func() { // it also types, which nobody reads
		for range 100 {
			_ = c.WriteMessage(websocket.BinaryMessage, make([]byte, 1000))
		}
	}()
	require.Equal(t, "0", c.closed(websocket.CloseNormalClosure))
	require.True(t, strings.Repeat("x", 10<<20) == c.shown.String(), "%d bytes", c.shown.Len())
}

func TestTerminalSessionsEnd(t *testing.T) {
	a, url := terminalServer(t, newFake(t), nil)
	for _, path := range []string{"exec", "console"} {
		first := map[string]string{"exec": execMessage("cat"), "console": "{}"}[path]
		for name, end := range map[string]struct {
			token func() string
			code  int
			do    func()
		}{
			"expired": {func() string { return fmt.Sprintf("alice-token;exp=%d", time.Now().Add(4*time.Second).Unix()) }, websocket.ClosePolicyViolation, func() {}},
			"stopped": {func() string { return "alice-token" }, websocket.CloseNormalClosure, func() { require.NoError(t, a.manager.Stop(t.Context(), 1000)) }},
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				c := dialTerminal(t, url+path, end.token(), first)
				c.write("typed\n")
				c.until("typed")
				end.do()
				c.closed(end.code)
			})
		}
	}
	if err := a.manager.Start(t.Context(), 1000); !errdefs.IsConflict(err) { // it runs if the last one only expired
		require.NoError(t, err)
	}
	requireIdle(t, a)

	t.Run("too many", func(t *testing.T) {
		for range 16 {
			half(t, url+"exec")
		}
		_, resp, err := websocket.DefaultDialer.Dial(url+"exec", http.Header{"Authorization": {"Bearer alice-token"}})
		require.Error(t, err)
		require.Equal(t, 429, resp.StatusCode)
	})
	t.Run("silent", func(t *testing.T) { // until its time for a first message is over
		require.Eventually(t, func() bool {
			conn, _, err := websocket.DefaultDialer.Dial(url+"exec", http.Header{"Authorization": {"Bearer alice-token"}})
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}, 30*time.Second, 50*time.Millisecond)
	})
	t.Run("shutdown", func(t *testing.T) {
		talking := dialTerminal(t, url+"exec", "alice-token", execMessage("cat"))
		talking.write("typed")
		talking.until("typed")
		busy := dialTerminal(t, url+"exec", "alice-token", execMessage("yes"))
		busy.until("y")
		silent := dialTerminal(t, url+"console", "alice-token", "")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- a.server.Shutdown(ctx) }()
		for _, c := range []*client{talking, busy, silent} {
			require.Contains(t, c.closed(websocket.CloseGoingAway), "shutting down")
		}
		require.NoError(t, <-done)
		_, resp, err := websocket.DefaultDialer.Dial(url+"exec", http.Header{"Authorization": {"Bearer alice-token"}})
		require.Error(t, err)
		require.Equal(t, 503, resp.StatusCode)
	})
	requireIdle(t, a)
}

// flood is a runtime with a command that prints as much as it can.
type flood struct {
	*runtimetest.Fake
	limit   int64 // 0: none
	written atomic.Int64
	ended   atomic.Bool
}

func (f *flood) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
	if opts.Command[0] != "flood" {
		return f.Fake.Exec(ctx, name, opts)
	}
	if _, err := f.Fake.Exec(ctx, name, webspace.ExecOptions{Command: []string{"true"}}); err != nil {
		return 0, err
	}
	defer f.ended.Store(true)
	chunk := []byte(strings.Repeat("x", 32<<10))
	for f.limit == 0 || f.written.Load() < f.limit {
		n, err := opts.Stdout.Write(chunk)
		f.written.Add(int64(n))
		if err != nil {
			return 137, nil
		}
	}
	return 0, nil
}
