package integration_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// promptEcho powers off at once.
var promptEcho = testbed.Image{Files: map[string]string{"sbin/init": `#!/bin/sh
trap 'poweroff -f' USR2
/etc/boot
udhcpc -f -i eth0 -s /etc/udhcpc.sh &
nc -ll -p 7 -e /bin/cat &
while :; do sleep 3600 & wait $!; done
`}}

// Members have TCP ports, which boot their webspaces, too.
func TestForwards(t *testing.T) {
	e := testbed.LXD(t)
	e.ImportImage(t, "prompt-echo", promptEcho)
	prefix := e.Prefix + "f-"
	d := startDaemon(t, e, prefix, nil)
	alice := prefix + "u1000"
	t.Cleanup(func() { e.Delete(t, alice) })
	d.create(t, "alice", "prompt-echo")
	var forward struct {
		EPort int `json:"ePort"`
	}
	require.Equal(t, http.StatusCreated, d.do(t, "alice", "POST", fmt.Sprintf("/webspace/self/ports/%d", testbed.EchoPort), nil, &forward))
	require.NotZero(t, forward.EPort)
	port := forward.EPort

	t.Run("the first connection boots it", func(t *testing.T) {
		for range 20 { // looking whether a port is open does not
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		require.False(t, d.running(t, "alice"))
		require.NoError(t, echoed("", port))
		require.True(t, d.running(t, "alice"))
	})
	for name, end := range map[string]func(){
		"stop through the API":        func() { d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil) },
		"forced stop behind our back": func() { e.Run(t, "stop", "--force", alice) },
	} {
		t.Run("herd after a "+name, func(t *testing.T) {
			const clients, sources = 1000, 250
			end()
			starts := strings.Count(d.logs.String(), "msg=booting")
			var group sync.WaitGroup
			failures := make(chan error, clients)
			for i := range clients {
				group.Go(func() {
					if err := echoed(fmt.Sprintf("127.0.2.%d", 1+i%sources), port); err != nil {
						failures <- err
					}
				})
			}
			group.Wait()
			close(failures)
			for err := range failures {
				t.Error(err)
			}
			require.LessOrEqual(t, strings.Count(d.logs.String(), "msg=booting")-starts, 1)
		})
	}
	t.Run("stops while there are connections", func(t *testing.T) {
		var lost, served atomic.Int64
		rounds := 30
		if n, err := strconv.Atoi(os.Getenv("RACES")); err == nil {
			rounds = n
		}
		started := time.Now()
		for round := range rounds {
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					time.Sleep(rand.N(500 * time.Millisecond))
					// Each time from another network, because none may wake that many webspaces.
					if err := echoed(fmt.Sprintf("127.%d.%d.1", 10+round/250, round%250), port); err != nil {
						lost.Add(1)
						t.Error(time.Now().Format("15:04:05.000"), err)
						return
					}
					served.Add(1)
				})
			}
			require.Contains(t, []int{http.StatusNoContent, http.StatusNotFound}, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
			group.Wait()
			if (round+1)%50 == 0 {
				t.Logf("%d races, %d lost", round+1, lost.Load())
			}
		}
		t.Logf("%d served in %d races, %v", served.Load(), rounds, time.Since(started).Round(time.Second))
		require.Zero(t, lost.Load())
	})
	t.Run("an instance that is killed takes its connections along", func(t *testing.T) {
		conn := dialEcho(t, port)
		e.Run(t, "stop", "--force", alice)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		_, err := conn.Read(make([]byte, 1))
		require.True(t, err == io.EOF || isReset(err), "%v", err)
	})
	t.Run("a new daemon has the ports", func(t *testing.T) {
		d.terminate(t)
		d.start(t)
		require.Eventually(t, func() bool { return echoed("", port) == nil }, 20*time.Second, 50*time.Millisecond)
	})
	t.Run("removed", func(t *testing.T) {
		conn := dialEcho(t, port)
		require.Equal(t, http.StatusNoContent, d.do(t, "alice", "DELETE", fmt.Sprintf("/webspace/self/ports/%d", port), nil, nil))
		_, err := conn.Read(make([]byte, 1))
		require.True(t, isReset(err), "%v", err)
		require.ErrorIs(t, echoed("", port), syscall.ECONNREFUSED)
	})
}

// echoed sends something through a forwarded port from an address, and reads it back, to the end.
func echoed(source string, port int) error {
	dialer := net.Dialer{}
	if source != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	conn, err := dialer.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	const text = "something"
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != text {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// dialEcho returns a connection through a forwarded port that works.
func dialEcho(t *testing.T, port int) net.Conn {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)
	return conn
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
