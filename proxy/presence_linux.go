package proxy

import (
	"io"
	"net"
	"sync"
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

// small is what is read at a time as long as little comes.
const small = 8 << 10

var smallBuffers = sync.Pool{New: func() any { return new([small]byte) }}

// move moves all that comes from one side to the other, until its end or an error, and counts it on the way.
//
// splice(2) takes a pipe, and net.TCPConn keeps it for as long as it waits: four descriptors and two pipes for each
// connection on which nothing happens. So it is only asked to move what has come already, and only much: a few bytes are
// copied for less.
// Even so it keeps its pipe while the receiver takes nothing. Without a permit for one, much is copied as well.
func move(to, from *net.TCPConn, moved *atomic.Uint64, pipes *permits) error {
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	var buffer *[small]byte
	var came int
	var failed error
	read := func(fd uintptr) bool {
		buffer = smallBuffers.Get().(*[small]byte)
		if came, failed = recv(int(fd), buffer[:]); failed != unix.EAGAIN {
			return true
		}
		smallBuffers.Put(buffer) // while nothing comes there is none
		return false
	}
	look := func(fd uintptr) { came = unread(int(fd)) }
	for {
		if err := raw.Read(read); err != nil {
			return err
		}
		if came > 0 && failed == nil {
			var n int
			n, failed = to.Write(buffer[:came])
			moved.Add(uint64(n))
		}
		smallBuffers.Put(buffer)
		if failed != nil || came == 0 {
			return failed
		}
		for much := came == small; much; {
			if err := raw.Control(look); err != nil {
				return err
			}
			if much = came >= small && pipes.take(); much {
				n, err := to.ReadFrom(&io.LimitedReader{R: from, N: int64(came)})
				pipes.give()
				moved.Add(uint64(n))
				if err != nil {
					return err
				}
			}
		}
	}
}

func recv(fd int, p []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, p); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// unread returns how many bytes have come and were not read.
func unread(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// sinceReceived returns how long ago the peer has sent something, or was connected.
func sinceReceived(conn *net.TCPConn) time.Duration {
	info := tcpInfo(conn)
	if info == nil {
		return 0
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// vanished tells whether a peer is gone without a word, as a container is that was killed with its network: it has
// acknowledged nothing for that long, however often the kernel has asked. Else the kernel would go on for a quarter of an hour.
//
// TCP_USER_TIMEOUT is not for that. It also ends connections to peers that answer, but take nothing for so long
// (tcp_probe_timer in net/ipv4/tcp_timer.c): a server that is busy, or a client that has paused its download.
func vanished(conn *net.TCPConn, after time.Duration) bool {
	info := tcpInfo(conn)
	return info != nil && info.Retransmits+info.Probes >= 6 && time.Duration(info.Last_ack_recv)*time.Millisecond >= after
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
