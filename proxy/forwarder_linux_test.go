package proxy_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/proxy"
)

// Without descriptors, connections wait in the queue of their port and are served when there are some again.
func TestForwarderWithoutDescriptors(t *testing.T) {
	const child = "TEST_FORWARDER_WITHOUT_DESCRIPTORS"
	if os.Getenv(child) == "" { // the limit is the process', and other tests run in this one
		cmd := exec.Command(os.Args[0], "-test.run=^TestForwarderWithoutDescriptors$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	address := echo(t)
	activator := running(address)
	activator.activate = func(context.Context, proxy.Target) (netip.AddrPort, error) { return address, nil }
	h := forwarder(t, activator, nil)
	port := h.open(t, db)
	echoes(t, dialPort(t, port), "x")
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 128, Max: 128}))
	var files []*os.File
	for {
		file, err := os.Open(os.DevNull)
		if err != nil {
			require.ErrorIs(t, err, syscall.EMFILE)
			break
		}
		files = append(files, file)
	}
	require.NoError(t, files[0].Close()) // for the client
	conn := dialPort(t, port)
	eventually(t, "there were errors", func() bool { return h.Stats().AcceptErrors > 2 })
	require.NoError(t, h.Status(port))
	require.NoError(t, files[1].Close()) // enough to take it, and too few to connect it
	eventually(t, "taken", func() bool { return h.Stats().DialErrors > 2 })
	require.Empty(t, h.blamed(), "this is not the fault of the endpoint")
	for _, file := range files {
		_ = file.Close()
	}
	echoes(t, conn, "hello")
}

// Both sides are asked now and then whether they are there.
func TestForwarderSocketOptions(t *testing.T) {
	h := forwarder(t, running(echo(t)), nil)
	address := fmt.Sprintf("127.0.0.1:%d", h.open(t, db))
	before := sockets(t)
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)
	kept, limited := 0, 0
	for fd := range sockets(t) {
		if before[fd] {
			continue
		}
		keepAlive, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		require.NoError(t, err)
		timeout, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		require.NoError(t, err)
		kept += keepAlive
		if timeout == 30_000 {
			limited++
		}
	}
	require.GreaterOrEqual(t, kept, 2, "the client's and the target's, and whatever the test has")
	require.Equal(t, 1, limited, "the target's; a client may pause its download for longer")
}

// sockets returns the TCP sockets of this process.
func sockets(t *testing.T) map[int]bool {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	found := map[int]bool{}
	for _, entry := range entries {
		var fd int
		if _, err := fmt.Sscan(entry.Name(), &fd); err != nil {
			continue
		}
		if protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && protocol == unix.IPPROTO_TCP {
			found[fd] = true
		}
	}
	return found
}
