package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// upgradedConn is a client's connection after an upgrade.
type upgradedConn struct {
	net.Conn
	exchange *exchange
	early    *bufio.Reader // has what the client sent without waiting for the answer
	closed   sync.Once
}

func (c *upgradedConn) Read(p []byte) (int, error) {
	c.exchange.touch()
	if n := c.early.Buffered(); n > 0 {
		return c.early.Read(p[:min(n, len(p))])
	}
	return c.Conn.Read(p)
}

func (c *upgradedConn) Write(p []byte) (int, error) {
	c.exchange.touch()
	return c.Conn.Write(p)
}

// CloseWrite passes the end of one direction on, while the other one lives.
func (c *upgradedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported // then ReverseProxy ends both
}

func (c *upgradedConn) Close() error {
	c.closed.Do(func() { c.exchange.gateway.count(func(s *GatewayStats) { s.Upgraded-- }) })
	return c.Conn.Close()
}

// requestBody is the body on its way to the target.
type requestBody struct {
	exchange *exchange
	from     io.Reader
	none     bool        // nothing to read
	trailer  http.Header // what is sent after the body; filled in when it ends

	reading sync.Mutex // held while from is read

	mu     sync.Mutex // guards the rest
	err    error      // of the last Read
	closed bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return 0, http.ErrBodyReadAfterClose
	}
	b.exchange.touch()
	n, err := b.from.Read(p)
	if err != nil {
		for name := range b.trailer {
			b.trailer[name] = b.exchange.request.Trailer[name]
		}
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
		b.exchange.waitForAnswer()
	}
	return n, err
}

// Close does nothing: a try that fails closes the body, and the next one still needs it.
func (b *requestBody) Close() error { return nil }

// close returns when nothing is read any more. The transport may do so even after its round trip is over.
func (b *requestBody) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.reading.Lock()
	defer b.reading.Unlock()
}

// finished tells whether the body was read to its end.
func (b *requestBody) finished() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.none || b.err == io.EOF
}

// malformed tells whether the body is not as HTTP has it, or was cut short.
func (b *requestBody) malformed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil && b.err != io.EOF
}
