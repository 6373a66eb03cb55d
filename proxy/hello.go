package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// maxHello is how much is read to know what a TLS client wants.
const maxHello = 16 << 10

// hello is what a TLS client says first.
type hello struct {
	serverName string // empty if it names none
	protocols  []string
	bytes      []byte // all that was read to know it: the ClientHello, and what the client has sent right behind it
}

// Why a client's hello can not be understood.
const (
	helloGone      = "gone"      // it left before
	helloSlow      = "slow"      // it took too long
	helloLong      = "long"      // there is no end of it within 16 KiB
	helloMalformed = "malformed" // it is none
)

// HelloFailures are the reasons in [TLSGatewayStats].Hellos: the client left before ("gone"), took too long ("slow"), there
// was no end of what it said ("long"), or that was no ClientHello ("malformed").
func HelloFailures() []string { return []string{helloGone, helloSlow, helloLong, helloMalformed} }

// helloError is that there is no hello.
type helloError struct {
	reason string
	alert  []byte // that TLS has for it; may be empty
	err    error
}

func (e *helloError) Error() string { return e.reason + ": " + e.err.Error() }
func (e *helloError) Unwrap() error { return e.err }

// errEnough ends a handshake when the hello is known.
var errEnough = errors.New("the ClientHello was read")

// readHello reads a ClientHello, in whatever records and packets it comes. It is crypto/tls that reads it, so there is no
// other opinion of it than that of the server which may take it over. The error is a helloError.
func readHello(conn net.Conn, timeout time.Duration) (hello, error) {
	var h hello
	reader := &helloConn{Conn: conn}
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	err := tls.Server(reader, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h.serverName, h.protocols = info.ServerName, info.SupportedProtos
			return nil, errEnough
		},
	}).HandshakeContext(context.Background())
	_ = conn.SetReadDeadline(time.Time{})
	h.bytes = reader.read
	switch {
	case errors.Is(err, errEnough):
		return h, nil
	case errors.Is(err, errLong):
		return h, &helloError{helloLong, alert(tlsRecordOverflow), err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return h, &helloError{helloSlow, nil, err}
	case reader.err != nil:
		return h, &helloError{helloGone, nil, err}
	}
	return h, &helloError{helloMalformed, reader.written, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)}
}

var errLong = fmt.Errorf("no ClientHello in %d bytes: %w", maxHello, errdefs.ErrInvalidArgument)

// helloConn remembers what is read, and sends nothing.
type helloConn struct {
	net.Conn
	read, written []byte
	err           error
}

func (c *helloConn) Read(p []byte) (int, error) {
	left := maxHello - len(c.read)
	if left == 0 {
		return 0, errLong
	}
	n, err := c.Conn.Read(p[:min(len(p), left)])
	c.read = append(c.read, p[:n]...)
	c.err = err
	return n, err
}

func (c *helloConn) Write(p []byte) (int, error) {
	c.written = append(c.written, p...)
	return len(p), nil
}

// SetWriteDeadline does nothing: crypto/tls sets one for its alerts.
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }

// replayConn is a connection from which something was read already. Who reads it gets that first.
type replayConn struct {
	*net.TCPConn
	conn  net.Conn // as it was accepted
	early []byte
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.TCPConn.Read(p)
}

// WriteTo must not go past Read.
func (c *replayConn) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.early)
	c.early = c.early[n:]
	if err != nil {
		return int64(n), err
	}
	m, err := c.TCPConn.WriteTo(w)
	return int64(n) + m, err
}

func (c *replayConn) NetConn() net.Conn    { return c.conn }
func (c *replayConn) Close() error         { return c.conn.Close() }
func (c *replayConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }
func (c *replayConn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }

// Alerts of TLS (RFC 8446, section 6).
const (
	tlsRecordOverflow   = 22
	tlsInternalError    = 80
	tlsUnrecognizedName = 112
)

// alert returns the record with a fatal alert.
func alert(description byte) []byte { return []byte{21, 3, 1, 0, 2, 2, description} }
