package proxy_test

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

func TestListenIsShared(t *testing.T) {
	for _, network := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		first, err := proxy.Listen(t.Context(), network)
		require.NoError(t, err)
		defer first.Close()
		shared, err := proxy.CheckListen(t.Context(), first.Addr().String())
		require.NoError(t, err)
		require.True(t, shared)
		second, err := proxy.Listen(t.Context(), first.Addr().String())
		require.NoError(t, err)
		defer second.Close()
	}
}

// Another program that has the port is in the way, as it always was, and so are we in its.
func TestListenIsNotSharedWithStrangers(t *testing.T) {
	stranger, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer stranger.Close()
	_, err = proxy.Listen(t.Context(), stranger.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, err = proxy.CheckListen(t.Context(), stranger.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)

	ours, err := proxy.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	defer ours.Close()
	_, err = net.Listen("tcp", ours.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

func TestCheckListen(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	shared, err := proxy.CheckListen(t.Context(), free.Addr().String())
	require.NoError(t, err)
	require.False(t, shared)
	_, err = net.DialTimeout("tcp", free.Addr().String(), time.Second)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "nobody listens")
	_, err = proxy.CheckListen(t.Context(), "198.18.255.254:80")
	require.ErrorIs(t, err, syscall.EADDRNOTAVAIL)
	_, err = proxy.CheckListen(t.Context(), "nonsense")
	require.Error(t, err)
}

// One listener after the other takes an address over, while clients connect to it without pause.
func TestYield(t *testing.T) {
	current, err := proxy.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	address := current.Addr().String()
	var servers sync.WaitGroup
	defer servers.Wait()
	serve := func(l net.Listener) {
		servers.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("."))
				_ = conn.Close()
			}
		})
	}
	serve(current)
	defer func() { _ = current.Close() }()

	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served, failed atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.DialTimeout("tcp", address, 5*time.Second)
				if err == nil {
					_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
					var b [1]byte
					_, err = conn.Read(b[:])
					_ = conn.Close()
				}
				if err != nil {
					failed.Add(1)
					t.Log(err)
				} else {
					served.Add(1)
				}
			}
		})
	}
	for range 20 {
		next, err := proxy.Listen(t.Context(), address)
		require.NoError(t, err)
		serve(next)
		require.NoError(t, proxy.Yield(current))
		// Whatever has been on its way to the old listener has arrived when so many others have been served.
		target := served.Load() + 200
		require.Eventually(t, func() bool { return served.Load() >= target }, 10*time.Second, time.Millisecond)
		require.NoError(t, current.Close())
		current = next
	}
	close(stop)
	clients.Wait()
	require.Zero(t, failed.Load())
	require.NoError(t, proxy.Yield(current))
	conn, err := net.DialTimeout("tcp", address, time.Second)
	require.NoError(t, err, "without a successor it goes on serving")
	_ = conn.Close()
	require.ErrorIs(t, proxy.Yield(nil), errors.ErrUnsupported)
}

// Another user can not take part of our connections.
func TestListenIsNotSharedWithOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: needs root to become somebody else")
	}
	l, err := proxy.Listen(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, syscall.Seteuid(65534))
	_, err = proxy.Listen(t.Context(), l.Addr().String())
	require.NoError(t, syscall.Seteuid(0))
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}
