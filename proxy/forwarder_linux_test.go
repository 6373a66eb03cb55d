package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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
	kept := 0
	for fd := range sockets(t) {
		if before[fd] {
			continue
		}
		keepAlive, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		require.NoError(t, err)
		kept += keepAlive
	}
	require.GreaterOrEqual(t, kept, 2, "the client's and the target's, and whatever the test has")
}

// A target of which nothing comes back, as of an instance that has just gone, is dialled again and again, not waited for.
func TestForwarderDialEnds(t *testing.T) {
	// A listener whose queue is full drops SYNs.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 0))
	name, err := unix.Getsockname(fd)
	require.NoError(t, err)
	address := netip.AddrPortFrom(loopback, uint16(name.(*unix.SockaddrInet4).Port))
	for {
		conn, err := net.DialTimeout("tcp", address.String(), 200*time.Millisecond)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	h := forwarder(t, &fakeActivator{activate: func(context.Context, proxy.Target) (netip.AddrPort, error) {
		return address, nil
	}}, &proxy.ForwarderOptions{HoldTimeout: 2 * time.Second})
	conn := dialPort(t, h.open(t, db))
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	began := time.Now()
	wasReset(t, conn)
	require.Less(t, time.Since(began), 10*time.Second)
	require.GreaterOrEqual(t, h.Stats().DialErrors, uint64(2))
}

// A target that reads nothing for longer than one that acknowledges nothing may loses nothing by it.
func TestForwarderSlowTarget(t *testing.T) {
	t.Parallel()
	const size = 40 << 20
	got := make(chan int64, 1)
	address := server(t, func(conn *net.TCPConn) {
		time.Sleep(50 * time.Second) // which is what it is about
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})
	h := forwarder(t, running(address), nil)
	conn := dialPort(t, h.open(t, db))
	require.NoError(t, conn.SetDeadline(time.Now().Add(3*time.Minute)))
	n, err := conn.Write(make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, conn.CloseWrite())
	require.EqualValues(t, size, n)
	require.EqualValues(t, size, <-got)
}

// Connections of which neither side reads take a bounded number of pipes, and still move what they have to.
func TestForwarderStalledDescriptors(t *testing.T) {
	const n, size = 100, 8 << 20
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was))
	read := make(chan struct{})
	got := make(chan int64, n)
	address := server(t, func(conn *net.TCPConn) {
		<-read
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1024, Max: was.Max}))
	h := forwarder(t, running(address), &proxy.ForwarderOptions{Limits: proxy.HoldLimits{Source: n, Total: n, Webspace: n}})
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was))
	port := h.open(t, db)
	base := descriptors()
	var writing sync.WaitGroup
	for range n {
		conn := dialPort(t, port)
		require.NoError(t, conn.SetDeadline(time.Now().Add(2*time.Minute)))
		writing.Go(func() {
			_, err := conn.Write(make([]byte, size))
			assert.NoError(t, err)
			assert.NoError(t, conn.CloseWrite())
		})
	}
	moved := uint64(0)
	require.Eventually(t, func() bool { // until nothing moves any more
		before := moved
		moved = h.Stats().Received
		return moved == before && moved > 0
	}, time.Minute, 500*time.Millisecond)
	require.LessOrEqual(t, descriptors()-base, 4*n+2*1024/32)
	close(read)
	writing.Wait()
	for range n {
		require.EqualValues(t, size, <-got)
	}
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
