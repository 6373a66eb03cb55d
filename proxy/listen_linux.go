package proxy

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// share lets a socket that is about to be bound share its address with others of the same user that want to, and reports
// whether there are any.
func share(network, address string, conn syscall.RawConn) (shared bool, err error) {
	e := conn.Control(func(fd uintptr) {
		if bind(int(fd), network, address) == unix.EADDRINUSE {
			shared = true
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return shared, errors.Join(e, err)
}

// bindOnly binds a socket like fd, with its options, and closes it.
func bindOnly(network, address string, conn syscall.RawConn) (err error) {
	e := conn.Control(func(fd uintptr) { err = bind(int(fd), network, address) })
	if err != nil {
		err = &net.OpError{Op: "listen", Net: network, Err: err}
	}
	return errors.Join(e, err)
}

// bind tries whether a socket with the options of fd can be bound to an address.
func bind(fd int, network, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Port() == 0 {
		return nil // any port is as good
	}
	family := unix.AF_INET6
	var to unix.Sockaddr
	if network == "tcp4" {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		to6 := &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
		if zone := at.Addr().Zone(); zone != "" {
			if i, err := net.InterfaceByName(zone); err == nil {
				to6.ZoneId = uint32(i.Index)
			}
		}
		to = to6
	}
	trial, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(trial)
	options := [][2]int{{unix.SOL_SOCKET, unix.SO_REUSEADDR}, {unix.SOL_SOCKET, unix.SO_REUSEPORT}}
	if family == unix.AF_INET6 {
		options = append(options, [2]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY})
	}
	for _, option := range options {
		value, err := unix.GetsockoptInt(fd, option[0], option[1])
		if err == nil {
			err = unix.SetsockoptInt(trial, option[0], option[1], value)
		}
		if err != nil {
			return err
		}
	}
	return unix.Bind(trial, to)
}

// yield has the second of the sockets that share an address chosen for all connections. The first, by the order in which
// they were opened, is that of the process that was there before. Where there is no second one, the kernel chooses as it did
// before (net/core/sock_reuseport.c, run_bpf_filter). The choice stays when the first is closed: whoever opens the address
// next then has all connections at once. With three sockets it may be the wrong one, so there must be one successor at a time.
func yield(conn syscall.RawConn) error {
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1}}
	var err error
	e := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(e, err)
}
