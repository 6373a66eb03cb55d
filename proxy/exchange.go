package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// lastWords is how long an exchange that is cut off has to tell the client, and a client that has been answered early to
// finish its request.
const lastWords = time.Second

// exchange is one request and its response, or the upgraded connection that they became. It stands between the
// ReverseProxy and both sides: as the client's ResponseWriter, and as the round trip to the target.
type exchange struct {
	http.ResponseWriter
	gateway *Gateway
	request *http.Request
	target  Target
	source  netip.Addr
	ctx     context.Context // ends with the request, and when the exchange is aborted
	cancel  context.CancelCauseFunc
	body    requestBody

	// Only the goroutine that serves the request uses these, one RoundTrip at a time.
	endpoint Endpoint
	sent     bool      // there was a round trip
	tunnel   io.Closer // the target's side of an upgraded connection

	mu        sync.Mutex
	unhold    func()      // gives the slot in Holds back; nil if there is none
	idle      *time.Timer // aborts when nothing moves; nil until something has to
	answering bool        // the response has begun
	conn      net.Conn    // the client's, once it was upgraded
	over      bool        // the ResponseWriter is not ours any more
}

type (
	exchangeKey struct{}
	connKey     struct{}
)

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// roundTripper is the transport of the ReverseProxy.
type roundTripper struct{}

func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r)
	x.sent = true
	if endpoint, ok := x.gateway.activator.Ready(x.target); ok {
		response, err := x.try(r, endpoint)
		if !isDialError(err) {
			return response, err
		}
	}
	return x.hold(r)
}

// hold waits for the target and sends the request to it, again and again until it has been taken to an endpoint: the
// instance may stop, crash, restart or move at any moment, and its new life serves the request as well.
func (x *exchange) hold(r *http.Request) (*http.Response, error) {
	g := x.gateway
	ctx, cancel := context.WithTimeout(x.ctx, g.opts.HoldTimeout)
	defer cancel()
	if !x.body.none {
		defer x.watch()()
	}
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { x.release() }}
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if err := x.acquire(); err != nil {
			return nil, err
		}
		endpoint, err := g.activator.Activate(ctx, x.target)
		if err == nil {
			response, err := x.try(r, endpoint)
			busy := errdefs.IsResourceExhausted(err) // whoever was held is not refused because all the others were, too
			if !isDialError(err) && !busy {
				return response, err
			}
			// Whatever the activator thinks, it can not be reached. A moment, lest the two argue at full speed.
			select {
			case <-time.After(pause):
				continue
			case <-ctx.Done():
			}
			if busy {
				return nil, err
			}
		}
		if _, ok := errors.AsType[*Failure](err); ok || ctx.Err() == nil {
			x.warn("activation failed", err)
			return nil, err
		}
		if x.ctx.Err() != nil {
			return nil, context.Cause(x.ctx)
		}
		return nil, &Failure{
			Reason:     fmt.Sprintf("The webspace has not come up within %v. It may do so in a moment.", g.opts.HoldTimeout),
			RetryAfter: 5 * time.Second,
			Err:        fmt.Errorf("held for %v: %w", g.opts.HoldTimeout, context.DeadlineExceeded),
		}
	}
}

// try sends the request to an endpoint. After a dialError, and after ResourceExhausted because too many are active,
// nothing has been sent and the endpoint is given back; in any other case it is kept until the exchange is over.
func (x *exchange) try(r *http.Request, endpoint Endpoint) (*http.Response, error) {
	if err := x.gateway.enter(x.target.Webspace, x.source); err != nil {
		endpoint.Release(nil)
		return nil, err
	}
	x.endpoint = endpoint
	attempt, url := *r, *r.URL
	url.Host = poolKey(x.target.Webspace, endpoint.Address)
	attempt.URL = &url
	response, err := x.gateway.transport.roundTrip(&attempt)
	if dial, ok := errors.AsType[*dialError](err); ok {
		x.leave(dial.blame())
		x.gateway.count(func(s *GatewayStats) { s.DialErrors++ })
		x.gateway.opts.Logger.DebugContext(x.ctx, "dial failed", "webspace", x.target.Webspace,
			"address", endpoint.Address, "error", err)
	}
	if err == nil && endpoint.FirstByte != nil {
		endpoint.FirstByte()
	}
	if err == nil && response.StatusCode == http.StatusSwitchingProtocols {
		x.tunnel = response.Body // ReverseProxy does not close it if it was not asked to switch
	}
	return response, err
}

func isDialError(err error) bool {
	_, ok := errors.AsType[*dialError](err)
	return ok
}

// leave gives the endpoint back, if there is one.
func (x *exchange) leave(err error) {
	if release := x.endpoint.Release; release != nil {
		x.endpoint = Endpoint{}
		x.gateway.leave(x.target.Webspace, x.source)
		release(err)
	}
}

func (x *exchange) acquire() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.unhold != nil {
		return nil
	}
	var err error
	x.unhold, err = x.gateway.opts.Holds.hold(x.gateway.activator, x.target.Webspace, x.source)
	return err
}

func (x *exchange) release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.unhold != nil {
		x.unhold()
		x.unhold = nil
	}
}

// watch aborts the exchange when the client has left, until the returned function is called. net/http reads ahead to
// notice that, but only once the request's body has been read to its end, and a held body is not read at all: so the
// socket has to be asked. It can not be waited for, as the next read of the body would have to wait for the same lock.
func (x *exchange) watch() (stop func()) {
	conn, _ := x.request.Context().Value(connKey{}).(net.Conn)
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok || x.request.ProtoMajor != 1 { // HTTP/2 always reads
		return func() {}
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return func() {}
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		// Most holds are short, and there may be ten thousand long ones.
		for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, 100*time.Millisecond) {
			select {
			case <-time.After(pause):
				if hungUp(raw) {
					x.cancel(errGone)
					return
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-stopped }
}

// touch starts the wait for the next thing to move.
func (x *exchange) touch() {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.over:
	case x.idle == nil:
		x.idle = time.AfterFunc(x.gateway.opts.IdleTimeout, func() { x.abort(errIdle) })
	default:
		x.idle.Reset(x.gateway.opts.IdleTimeout)
	}
}

// abort ends the exchange from outside: what is held or on its way to the target ends through the context, and what is
// blocked on the client by a deadline. There is time left to write an answer, but not to read on: the transport only
// returns when it does not read the body any more.
func (x *exchange) abort(cause error) {
	x.cancel(cause)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.over:
	case x.conn != nil:
		_ = x.conn.SetDeadline(time.Now())
	default:
		client := http.NewResponseController(x.ResponseWriter)
		_ = client.SetReadDeadline(time.Now())
		_ = client.SetWriteDeadline(time.Now().Add(lastWords))
	}
}

// fail answers a request that could not be proxied.
func (x *exchange) fail(err error) {
	if cause := context.Cause(x.ctx); cause != nil {
		err = cause
	}
	switch {
	case x.upgraded():
		x.log(0, err)
	case x.request.Context().Err() != nil && err != errIdle && err != errClosing, err == errGone:
		x.gateway.count(func(s *GatewayStats) { s.ClientsGone++ })
		x.log(0, err)
		panic(http.ErrAbortHandler)
	case !x.sent && x.target != (Target{}):
		x.answer(answerRequest, err) // refused by the ReverseProxy
	case err == errIdle && !x.body.finished():
		x.answer(answerUnread, err)
	case context.Cause(x.ctx) == nil && x.body.malformed():
		x.answer(answerRequest, err)
	default:
		x.answer(answerTo(err, x.target), err)
	}
}

func (x *exchange) answer(a answer, err error) {
	x.log(a.Status, err)
	x.gateway.count(func(s *GatewayStats) { s.Failures[a.Status]++ })
	x.release()
	a.write(x, x.request)
}

func (x *exchange) log(status int, err error) {
	x.gateway.opts.Logger.DebugContext(x.request.Context(), "request failed", "webspace", x.target.Webspace,
		"port", x.target.Port, "status", status, "error", err)
}

// warn logs what neither the client nor the target has done, and nobody has put in words for the client.
func (x *exchange) warn(event string, err error) {
	if _, ok := errors.AsType[*Failure](err); !ok && !errdefs.IsNotFound(err) {
		x.gateway.opts.Logger.WarnContext(x.request.Context(), event, "webspace", x.target.Webspace,
			"port", x.target.Port, "error", err)
	}
}

// end gives everything back. The ResponseWriter and the body belong to the server again.
func (x *exchange) end() {
	x.mu.Lock()
	x.over = true
	if x.idle != nil {
		x.idle.Stop()
	}
	client := http.NewResponseController(x.ResponseWriter)
	unread := x.conn == nil && !x.body.finished()
	x.mu.Unlock()
	x.cancel(nil)
	if unread {
		// The server now reads on to the end of the body, for which it has no limit of time. It would lift ours if the
		// transport still read: so that is ended first.
		_ = client.SetReadDeadline(time.Now())
		x.body.close()
		_ = client.SetReadDeadline(time.Now().Add(lastWords))
	}
	if x.tunnel != nil {
		_ = x.tunnel.Close()
	}
	x.release()
	x.leave(nil)
	x.gateway.end(x)
}

// WriteHeader is of http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if status < http.StatusOK {
		if x.request.ProtoAtLeast(1, 1) { // HTTP/1.0 takes the first answer for the last
			x.ResponseWriter.WriteHeader(status)
		}
		return
	}
	// An answer that does not wait for the whole request is passed on as such: net/http would first read the rest of
	// the body, and take it away from the target. The connection can not be used again, as what follows on it might
	// be the rest of this request.
	if x.request.ProtoMajor == 1 && !x.body.finished() || x.gateway.yielding.Load() {
		x.Header().Set("Connection", "close")
	}
	x.mu.Lock()
	x.answering = true
	x.mu.Unlock()
	x.touch()
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	x.touch()
	return x.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// Hijack is of http.Hijacker.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(x.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	x.touch()
	x.mu.Lock()
	x.conn = conn
	x.mu.Unlock()
	x.gateway.count(func(s *GatewayStats) { s.Upgraded++ })
	if x.ctx.Err() != nil { // aborted just before there was a connection to abort
		_ = conn.SetDeadline(time.Now())
	}
	return &upgradedConn{Conn: conn, exchange: x, early: buffered.Reader}, buffered, nil
}

func (x *exchange) upgraded() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conn != nil
}

// waitForAnswer stops the wait for something to move: how long the target may think is the transport's business.
func (x *exchange) waitForAnswer() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.idle != nil && !x.answering {
		x.idle.Stop()
	}
}
