package proxy

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// presenceOf looks at a connection without reading from it.
func presenceOf(fd uintptr) presence {
	fds := []unix.PollFd{{Fd: int32(fd), Events: pollRDHUP}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return quiet
	}
	if fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		return gone
	}
	if unread, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil && unread > 0 {
		return sent
	}
	if fds[0].Revents&pollRDHUP != 0 {
		return gone
	}
	return quiet
}

// move moves all that comes from one side to the other, until its end or an error, and counts it on the way.
//
// splice(2) takes a pipe, and net.TCPConn keeps it for as long as it waits: four descriptors and two pipes for each
// connection on which nothing happens. So it is only asked to move what has come already.
func move(to, from *net.TCPConn, moved *atomic.Uint64) error {
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	var came int
	var failed error
	peeked := make([]byte, 1)
	arrived := func(fd uintptr) bool {
		came, failed = unread(int(fd), peeked)
		return failed != unix.EAGAIN
	}
	part := io.LimitedReader{R: from}
	for {
		if err := raw.Read(arrived); err != nil {
			return err
		}
		if came == 0 || failed != nil {
			return failed
		}
		part.N = int64(came)
		n, err := to.ReadFrom(&part)
		moved.Add(uint64(n))
		if err != nil {
			return err
		}
	}
}

// unread returns how many bytes have come and were not read; 0 at the end. The error is EAGAIN if nothing has come.
func unread(fd int, peeked []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, peeked, unix.MSG_PEEK)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(fd, peeked, unix.MSG_PEEK)
	}
	if err != nil || n == 0 {
		return 0, err
	}
	if all, err := unix.IoctlGetInt(fd, unix.SIOCINQ); err == nil {
		n = max(n, all)
	}
	return n, nil
}

// sinceReceived returns how long ago the peer has sent something, or was connected.
func sinceReceived(conn *net.TCPConn) time.Duration {
	info := tcpInfo(conn)
	if info == nil {
		return 0
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// isClosed tells whether a connection is over: reset, timed out, or ended by both sides.
func isClosed(conn *net.TCPConn) bool {
	const closed = 7 // TCP_CLOSE
	info := tcpInfo(conn)
	return info == nil || info.State == closed
}

// tcpInfo returns nil for a connection that was closed here.
func tcpInfo(conn *net.TCPConn) (info *unix.TCPInfo) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return info
}
