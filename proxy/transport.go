package proxy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// transport keeps the connections to endpoints.
//
// net/http pools connections by the host of the URL, and may dial in the background for a request that is over. So that
// host names both the webspace and the address, and dialling reads the address from it alone: a connection is only ever
// used for the webspace that it was opened for, even when its address belongs to another one by then.
type transport struct {
	// pooled carries requests that may be sent twice. When an endpoint closes an idle connection at the very moment
	// in which it is used, net/http tries such a request again on another one.
	pooled *http.Transport
	// single carries all others, each on a connection of its own, where that can not happen.
	single *http.Transport
}

// dialTimeout is how long an endpoint has to answer. They are near: one that has not answered soon is not there.
const dialTimeout = 500 * time.Millisecond

// newDialer returns what connects to endpoints. An instance that is killed takes its sockets along without a word; whoever
// waits for it to say something notices within a minute.
func newDialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3},
	}
}

func newTransport(responseHeader time.Duration) transport {
	dialer := newDialer(dialTimeout)
	dial := func(ctx context.Context, _, host string) (net.Conn, error) {
		address, err := parsePoolKey(host)
		if err != nil {
			return nil, err
		}
		conn, err := dialer.DialContext(ctx, "tcp", address.String())
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	pooled := &http.Transport{
		DialContext:            dial,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConns:           max(min(1024, MaxConns()/4), 1),
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  responseHeader,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	single := pooled.Clone()
	single.DisableKeepAlives = true
	return transport{pooled, single}
}

func (t transport) roundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
			return t.pooled.RoundTrip(r)
		}
	}
	return t.single.RoundTrip(r)
}

func (t transport) close() {
	t.pooled.CloseIdleConnections()
	t.single.CloseIdleConnections()
}

// poolKey is in hexadecimal as the webspace's key may be anything, and a URL's host may not.
func poolKey(webspace string, address netip.AddrPort) string {
	return hex.EncodeToString([]byte(webspace)) + "." + hex.EncodeToString([]byte(address.Addr().String())) +
		fmt.Sprintf(":%d", address.Port())
}

func parsePoolKey(host string) (netip.AddrPort, error) {
	name, port, _ := strings.Cut(host, ":")
	_, address, _ := strings.Cut(name, ".")
	text, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(string(text), port))
}

// dialError is that nothing of a request was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// blame returns the error with which to release the endpoint that was dialled: none when the cause is here.
func (e *dialError) blame() error {
	for _, ours := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(e.err, ours) {
			return nil
		}
	}
	return e.err
}
