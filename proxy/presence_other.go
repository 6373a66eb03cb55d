//go:build !linux

package proxy

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Other systems say nothing of a connection that nobody reads from, nor since when it has been idle.
func presenceOf(uintptr) presence { return quiet }

func sinceReceived(*net.TCPConn) time.Duration { return 0 }

func vanished(*net.TCPConn, time.Duration) bool { return false }

func isClosed(*net.TCPConn) bool { return false }

// move moves all that comes from one side to the other, until its end or an error, and counts it on the way.
func move(to, from *net.TCPConn, moved *atomic.Uint64, _ *permits) error {
	for {
		n, err := to.ReadFrom(&io.LimitedReader{R: from, N: counted})
		moved.Add(uint64(n))
		if err != nil || n < counted {
			return err
		}
	}
}

// counted is after how many bytes they are counted.
const counted = 1 << 20
