// Package proxy is the data path of webspaced: a [Gateway] for HTTP, a [TLSGateway] and a [Forwarder] of TCP ports, which
// hold requests and connections while what serves them boots.
//
// It knows no webspace. A [Router] says which [Target] a host name belongs to, and an [Activator] makes a target take
// connections; the package does the rest: it holds the request within bounds, proxies that very same request once there
// is an endpoint, and tells the client why when there is none.
//
// A gateway at the edge, with nothing in front of it, has two listeners: one without TLS, where [GatewayOptions] may send
// clients to HTTPS and answer the challenges of certificate authorities, and one of a [TLSGateway], which passes some names
// through and gives the rest to the Gateway. [Conns] bound the connections of both, and [ProxyProtocol] tells who the clients
// of balancers are.
package proxy

import (
	"context"
	"net/netip"
	"time"
)

// Target is what a request or connection is for.
type Target struct {
	// Webspace is an opaque key; limits count per key.
	Webspace string
	// Port inside the instance.
	Port int
}

// Router says which target a request belongs to.
type Router interface {
	// Route returns the target that serves a host name. host comes from the client, in any spelling, without port. It
	// never blocks. The error is NotFound (github.com/containerd/errdefs) when nobody has this name, and may be
	// FailedPrecondition when whoever has it takes TLS connections only: to clients that looks the same, except where
	// they are sent to HTTPS.
	Route(host string) (Target, error)
}

// TLSRouter says what becomes of a TLS connection.
type TLSRouter interface {
	// RouteTLS returns the target that takes the TLS connections for a server name as they are, with its own certificate.
	// serverName comes from the client, in any spelling. It never blocks. The error is FailedPrecondition when TLS for
	// this name is to end here, and NotFound when nobody has it.
	RouteTLS(serverName string) (Target, error)
}

// Activator makes targets take connections. Implementations are safe for concurrent use.
type Activator interface {
	// Ready returns an endpoint if t is known to take connections now. It never blocks.
	Ready(t Target) (Endpoint, bool)

	// Activate boots t if need be and returns when it takes connections, when that has failed, or when ctx ends (then
	// with ctx's error; the boot goes on for others). Failures that a client should hear of wrap a [*Failure]. Classes
	// (github.com/containerd/errdefs): NotFound, there is no such target any more; ResourceExhausted, too many boots;
	// Unavailable, the boot failed; FailedPrecondition, it runs, but nothing listens on the port.
	Activate(ctx context.Context, t Target) (Endpoint, error)
}

// Runner is what an [Activator] is as well that knows for which webspaces a wait boots nothing. It takes nothing then from
// how many the limits of [Holds] allow to be woken.
type Runner interface {
	// Runs reports whether a webspace runs, or has been told to, or would not be booted now. It never blocks.
	Runs(webspace string) bool
}

// Endpoint is the right to connect to an address. While it is held, what answers there is in use: it is not stopped
// for being idle, and a stop that is asked for waits a moment for it.
type Endpoint struct {
	Address netip.AddrPort
	// Release gives the endpoint back and must be called once. An err that is not nil says that nothing could be
	// reached at Address, so that the next Activate looks at the truth again.
	Release func(err error)
	// FirstByte is nil, or wants to be called, at most once, when the first byte of an answer has come, by those who see
	// it. It does not block.
	FirstByte func()
}

// Failure is why a target can not be reached, in words for whoever asked.
type Failure struct {
	// Reason is shown to the client: one sentence that names nothing internal.
	Reason string
	// RetryAfter says when trying again makes sense; 0 if unknown.
	RetryAfter time.Duration
	// Err has the class and the details for the log. Never nil.
	Err error
}

func (f *Failure) Error() string { return f.Reason + ": " + f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }
