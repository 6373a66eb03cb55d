package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pires/go-proxyproto"
)

const (
	// proxyHeaderTimeout is how long a trusted peer has to send its header, which is the first thing that it sends.
	proxyHeaderTimeout = 3 * time.Second
	// maxProxyHeader bounds what follows the first 16 bytes of a header of version 2.
	maxProxyHeader = 4096
	// maxProxyHeaders is how many connections may be waiting for theirs.
	maxProxyHeaders = 1024
)

// ProxyProtocol returns a listener whose connections from trusted addresses begin with a PROXY header, version 1 or 2, and
// have the addresses that it says. Nothing behind the header is read, so the connections of a TCP listener still are what
// they were: each has all methods of a [*net.TCPConn], and NetConn, which returns it.
//
// A trusted peer must send the header: one that does not, or takes longer than 3 seconds, is cut off. Everybody else's
// connections are as they are, and a header in them is data like any other. Accept never waits for a header. The limits of
// [Conns] go on top, then they count the clients, not the balancers.
//
// The listener accepts connections of its own accord until it is closed. Close returns when nothing of it runs any more.
func ProxyProtocol(l net.Listener, trusted []netip.Prefix) net.Listener {
	p := &proxyListener{
		Listener: l, trusted: trusted,
		accepted: make(chan accepted), slots: make(chan struct{}, maxProxyHeaders),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.running.Go(p.run)
	return p
}

type proxyListener struct {
	net.Listener
	trusted  peers
	accepted chan accepted
	slots    chan struct{}
	ctx      context.Context // ends when the listener is closed
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

func (p *proxyListener) Accept() (net.Conn, error) {
	select {
	case a := <-p.accepted:
		return a.conn, a.err
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (p *proxyListener) Close() error {
	p.cancel()
	err := p.Listener.Close()
	p.running.Wait()
	return err
}

// run accepts as fast as connections are taken: what it can not pass on, it waits for.
func (p *proxyListener) run() {
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			if !p.pass(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		address, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		if !p.trusted.trust(address.Addr().Unmap().WithZone("")) {
			p.pass(accepted{conn: conn})
			continue
		}
		select {
		case p.slots <- struct{}{}:
			p.running.Go(func() {
				defer func() { <-p.slots }()
				p.read(conn)
			})
		default:
			_ = conn.Close()
		}
	}
}

// pass returns false if the listener is closed.
func (p *proxyListener) pass(a accepted) bool {
	select {
	case p.accepted <- a:
		return true
	case <-p.ctx.Done():
		if a.conn != nil {
			_ = a.conn.Close()
		}
		return false
	}
}

// read passes a connection on when its header was read.
func (p *proxyListener) read(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(proxyHeaderTimeout))
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	header, err := readProxyHeader(conn)
	if !stop() || err != nil {
		_ = conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	source, destination, ok := header.TCPAddrs()
	if header.Command.IsLocal() || !ok { // it speaks for itself; a check of health, for example
		p.pass(accepted{conn: conn})
		return
	}
	told := addressedConn{conn, source, destination}
	if tcp := socketOf(conn); tcp != nil {
		p.pass(accepted{conn: &addressedTCPConn{tcp, told}})
	} else {
		p.pass(accepted{conn: &told})
	}
}

// addressedConn has the addresses that a PROXY header has said.
type addressedConn struct {
	net.Conn
	remote, local net.Addr
}

func (c *addressedConn) NetConn() net.Conn    { return c.Conn }
func (c *addressedConn) RemoteAddr() net.Addr { return c.remote }
func (c *addressedConn) LocalAddr() net.Addr  { return c.local }

// addressedTCPConn keeps what others look for in a TCP connection.
type addressedTCPConn struct {
	*net.TCPConn
	told addressedConn
}

func (c *addressedTCPConn) NetConn() net.Conn    { return c.told.Conn }
func (c *addressedTCPConn) Close() error         { return c.told.Conn.Close() }
func (c *addressedTCPConn) RemoteAddr() net.Addr { return c.told.remote }
func (c *addressedTCPConn) LocalAddr() net.Addr  { return c.told.local }

// readProxyHeader reads a header, and not a byte more. The error is InvalidArgument if there is none.
func readProxyHeader(r io.Reader) (*proxyproto.Header, error) {
	const shortest = len("PROXY UNKNOWN\r\n")
	var size int
	header := make([]byte, shortest, 128)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(header, proxyproto.SIGV2):
		header = header[:16]
		if _, err := io.ReadFull(r, header[shortest:]); err != nil {
			return nil, err
		}
		if size = int(binary.BigEndian.Uint16(header[14:])); size > maxProxyHeader {
			return nil, fmt.Errorf("PROXY header of %d bytes: %w", 16+size, errdefs.ErrInvalidArgument)
		}
		header = append(header, make([]byte, size)...)
		if _, err := io.ReadFull(r, header[16:]); err != nil {
			return nil, err
		}
	case bytes.HasPrefix(header, proxyproto.SIGV1):
		for one := make([]byte, 1); header[len(header)-1] != '\n'; header = append(header, one[0]) {
			if len(header) == 107 {
				return nil, fmt.Errorf("PROXY header without an end: %w", errdefs.ErrInvalidArgument)
			}
			if _, err := io.ReadFull(r, one); err != nil {
				return nil, err
			}
		}
	}
	parsed, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), max(len(header), 16)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return parsed, nil
}

// proxyHeader returns the header that tells a target about its client.
func proxyHeader(client, here net.Addr) ([]byte, error) {
	return proxyproto.HeaderProxyFromAddrs(2, client, here).Format()
}
