//go:build !linux

package proxy

import (
	"net"
	"syscall"
	"time"
)

// Other systems only notice what net/http notices: a client that leaves before its body was read holds its slot until
// the hold ends.
func hungUp(syscall.RawConn) bool { return false }

func abandonUnacknowledged(_, _ string, _ syscall.RawConn) error { return nil }

// Nor do they say anything of a connection that nobody reads from.
func presenceOf(uintptr) presence { return quiet }

func sinceReceived(*net.TCPConn) time.Duration { return 0 }

func isClosed(*net.TCPConn) bool { return false }
