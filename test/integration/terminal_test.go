package integration_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// terminal is a client of an open terminal.
type terminal struct {
	*testing.T
	*websocket.Conn
	shown bytes.Buffer
}

// terminal opens alice's exec or console.
func (d *daemon) terminal(t *testing.T, path string, first any) *terminal {
	t.Helper()
	var conn *websocket.Conn
	require.Eventually(t, func() bool {
		var response *http.Response
		var err error
		conn, response, err = websocket.DefaultDialer.Dial("ws://"+d.api+"/v1/webspace/self/"+path, http.Header{"Authorization": {"Bearer alice"}})
		if response != nil && response.StatusCode == http.StatusTooManyRequests {
			return false
		}
		require.NoError(t, err)
		return true
	}, time.Minute, 50*time.Millisecond)
	t.Cleanup(func() { _ = conn.Close() })
	c := &terminal{T: t, Conn: conn}
	require.NoError(t, conn.WriteJSON(first))
	return c
}

func (c *terminal) typeIn(text string) {
	c.Helper()
	require.NoError(c, c.WriteMessage(websocket.BinaryMessage, []byte(text)))
}

func (c *terminal) until(text string) {
	c.Helper()
	for !strings.Contains(c.shown.String(), text) {
		require.NoError(c, c.SetReadDeadline(time.Now().Add(time.Minute)))
		_, message, err := c.ReadMessage()
		require.NoError(c, err, "there is no %q in %q", text, c.shown.String())
		c.shown.Write(message)
	}
}

func (c *terminal) closed(code int) (reason string) {
	c.Helper()
	require.NoError(c, c.SetReadDeadline(time.Now().Add(2*time.Minute)))
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

func command(args ...string) map[string]any {
	return map[string]any{"command": args, "width": 80, "height": 24}
}

// memory returns the daemon's resident set, in bytes.
func (d *daemon) memory(t *testing.T) (bytes int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, err = fmt.Sscan(rest, &bytes)
	require.NoError(t, err)
	return bytes << 10
}

// files counts the open files of the daemon.
func (d *daemon) files(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	require.NoError(t, err)
	return len(entries)
}

func TestTerminal(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	const alice = "ws-u1000"
	d.create(t, "alice", e.Image)
	t.Cleanup(func() { e.Delete(t, alice) })
	processes := func() string { return e.Run(t, "exec", alice, "--", "ps", "-o", "args") }
	gone := func(t *testing.T, command string) {
		t.Helper()
		require.Eventually(t, func() bool { return !strings.Contains(processes(), command) }, 30*time.Second, 100*time.Millisecond, processes())
	}

	t.Run("exit code", func(t *testing.T) { // and the start of the webspace
		c := d.terminal(t, "exec", command("/bin/sh", "-c", "tty; stty size; exit 7"))
		require.Equal(t, "7", c.closed(websocket.CloseNormalClosure))
		require.Contains(t, c.shown.String(), "24 80\r\n")
		require.Equal(t, "127", d.terminal(t, "exec", command("no-such-command")).closed(websocket.CloseNormalClosure))
	})
	t.Run("vi", func(t *testing.T) {
		c := d.terminal(t, "exec", command("vi", "/root/notes"))
		c.until("\x1b[24;1H") // the status line
		c.typeIn("ifirst line\rsecond line\x1b")
		c.until("second line")
		c.shown.Reset()
		require.NoError(t, c.WriteJSON(map[string]any{"resize": map[string]int{"width": 60, "height": 10}}))
		c.until("\x1b[10;1H") // drawn anew, for the new size
		require.Contains(t, c.shown.String(), "first line")
		c.typeIn(":wq\r")
		require.Equal(t, "0", c.closed(websocket.CloseNormalClosure))
		require.Equal(t, "first line\nsecond line\n", e.Run(t, "exec", alice, "--", "cat", "/root/notes"))
	})
	t.Run("10 MB", func(t *testing.T) {
		// It sleeps in the end because LXD 5.0 drops what is left in the terminal when its command ends.
		const script = `stty raw; i=0; while [ $i -lt 10 ]; do head -c 1000000 /dev/zero | tr '\0' $i; i=$((i+1)); done; sleep 1`
		c := d.terminal(t, "exec", command("/bin/sh", "-c", script))
		require.Equal(t, "0", c.closed(websocket.CloseNormalClosure))
		want := new(bytes.Buffer)
		for i := range 10 {
			want.Write(bytes.Repeat([]byte{byte('0' + i)}, 1000000))
		}
		require.True(t, bytes.Equal(want.Bytes(), c.shown.Bytes()), "%d bytes", c.shown.Len())
	})
	t.Run("signal", func(t *testing.T) {
		c := d.terminal(t, "exec", command("/bin/sh", "-c", "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"))
		c.until("ready")
		require.NoError(t, c.WriteJSON(map[string]int{"signal": 15}))
		require.Equal(t, "5", c.closed(websocket.CloseNormalClosure))
		require.Contains(t, c.shown.String(), "caught")
	})
	t.Run("console", func(t *testing.T) {
		for range 2 {
			c := d.terminal(t, "console", map[string]int{"width": 80, "height": 24})
			// What is typed before the engine has attached is lost.
			done := make(chan struct{})
			var typing sync.WaitGroup
			typing.Go(func() {
				for {
					_ = c.WriteMessage(websocket.BinaryMessage, []byte("echo $((6*7))-typed\r"))
					select {
					case <-done:
						return
					case <-time.After(200 * time.Millisecond):
					}
				}
			})
			c.until("42-typed")
			close(done)
			typing.Wait()
			require.NoError(t, c.WriteJSON(map[string]int{"width": 60, "height": 10}))
			require.NoError(t, c.Close())
			time.Sleep(500 * time.Millisecond) // until the engine lets the next one attach
		}
	})
	t.Run("client gone", func(t *testing.T) {
		c := d.terminal(t, "exec", command("/bin/sh", "-c", "echo ready; exec sleep 7777"))
		c.until("ready")
		require.Contains(t, processes(), "sleep 7777")
		require.NoError(t, c.NetConn().Close())
		gone(t, "sleep 7777")
	})
	t.Run("flood", func(t *testing.T) {
		before := d.memory(t)
		idle := d.terminal(t, "exec", command("yes")) // whose client does not read
		c := d.terminal(t, "exec", command("yes"))
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
			_, _, err := c.ReadMessage()
			require.NoError(t, err)
		}
		require.Less(t, d.memory(t), before+32<<20) // of a program built with the race detector
		require.NoError(t, c.Close())
		require.NoError(t, idle.Close())
		gone(t, "yes")
	})
	t.Run("500 times", func(t *testing.T) {
		cycle := func(n int) {
			c := d.terminal(t, "exec", command("cat"))
			if n%2 == 0 {
				c.typeIn("x\n")
				c.until("x")
			}
			require.NoError(t, c.Close())
		}
		for n := range 5 {
			cycle(n)
		}
		gone(t, "\ncat")
		before, list := d.files(t), strings.Count(processes(), "\n")
		for n := range 500 {
			cycle(n)
		}
		gone(t, "\ncat")
		require.Eventually(t, func() bool { return d.files(t) <= before+5 }, 30*time.Second, 100*time.Millisecond)
		require.LessOrEqual(t, strings.Count(processes(), "\n"), list)
	})
	t.Run("deleted", func(t *testing.T) {
		c := d.terminal(t, "exec", command("/bin/sh", "-c", "echo ready; cat"))
		c.until("ready")
		require.Equal(t, http.StatusNoContent, d.do(t, "alice", "DELETE", "/webspace/self", nil, nil))
		require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
		_, _, err := c.ReadMessage()
		var end *websocket.CloseError
		require.ErrorAs(t, err, &end)
	})
	t.Run("shutdown", func(t *testing.T) {
		d.create(t, "alice", e.Image)
		c := d.terminal(t, "exec", command("/bin/sh", "-c", "echo ready; cat"))
		c.until("ready")
		d.terminate(t)
		require.Contains(t, c.closed(websocket.CloseGoingAway), "shutting down")
	})
}
