package webspace

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A port that drops packets, as behind a firewall, costs its probe a few descriptors, not one each 10 ms.
func TestProbeTakesFewDescriptors(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc")
		}
		return len(entries)
	}
	// A listener whose queue is full drops SYNs.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
	for {
		conn, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	base, most := descriptors(), 0
	var probing sync.WaitGroup
	ended := make(chan struct{})
	probing.Go(func() {
		defer close(ended)
		require.ErrorIs(t, dial(context.Background(), at), context.DeadlineExceeded)
	})
	for tick := time.NewTicker(time.Millisecond); ; {
		select {
		case <-tick.C:
			most = max(most, descriptors()-base)
			continue
		case <-ended:
		}
		break
	}
	probing.Wait()
	require.Positive(t, most)
	require.LessOrEqual(t, most, 8)
}
