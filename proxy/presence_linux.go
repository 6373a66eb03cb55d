package proxy

import (
	"net"
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
