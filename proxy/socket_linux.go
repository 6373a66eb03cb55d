package proxy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// pollRDHUP is POLLRDHUP of poll(2), which x/sys only has under the name that epoll gives to the same bit.
const pollRDHUP = unix.EPOLLRDHUP

// hungUp tells whether the peer of a connection has closed it, or its sending half, whatever it has sent before that is
// still unread.
func hungUp(conn syscall.RawConn) bool {
	gone := false
	err := conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: pollRDHUP}}
		_, err := unix.Poll(fds, 0)
		gone = err == nil && fds[0].Revents&(pollRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil // an error here means that the connection is closed on our side
}

// descriptorLimit returns how many file descriptors the process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Cur, 1<<30))
}
