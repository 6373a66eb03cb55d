package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// CheckListen reports whether a TCP address can be listened on by [Listen], without doing so, and whether another process
// of this user does already. The error is the system's.
func CheckListen(ctx context.Context, address string) (shared bool, err error) {
	// A socket that is bound, and does not listen, gets no connections.
	config := net.ListenConfig{Control: func(network, address string, conn syscall.RawConn) error {
		var e error
		if shared, e = share(network, address, conn); e != nil {
			return e
		}
		if e = bindOnly(network, address, conn); e != nil {
			return e
		}
		return errNotListening
	}}
	l, err := config.Listen(ctx, "tcp", address)
	if err == nil {
		return shared, l.Close()
	}
	if errors.Is(err, errNotListening) {
		err = nil
	}
	return shared, err
}

var errNotListening = errors.New("only looked at")

// Listen opens a TCP listener that another process of the same user can open as well, to take over from this one: see
// [Yield]. It fails where a process is in the way that is not made for that.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: keepAlive,
		Control: func(network, address string, conn syscall.RawConn) error {
			_, err := share(network, address, conn)
			return err
		},
	}
	config.SetMultipathTCP(false) // the kernel does not splice it
	return config.Listen(ctx, "tcp", address)
}

// Yield has the kernel give the connections that come from now on to the process that has opened the address of l after
// this one, if there is such a process; connections that have come are still to be accepted. A listener that is closed
// takes those with it that wait in its queue, and so would lose some that came an instant before; one that has yielded for
// a moment has none.
//
// It takes a listener of [Listen], or one that has such a one in it, on Linux.
func Yield(l net.Listener) error {
	for {
		switch inner := l.(type) {
		case *net.TCPListener:
			conn, err := inner.SyscallConn()
			if err != nil {
				return err
			}
			return yield(conn)
		case *limitListener:
			l = inner.Listener
		case *proxyListener:
			l = inner.Listener
		default:
			return fmt.Errorf("yield: %T is no listener of this package: %w", l, errors.ErrUnsupported)
		}
	}
}
