package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// GatewayOptions are what may differ between gateways. The zero value of each is its default.
type GatewayOptions struct {
	// Holds bound the requests that wait; share them with everything else that holds connections. Default: new ones.
	Holds *Holds
	// HoldTimeout is the longest time that a request waits for its target: 50 seconds, below the 60 seconds after
	// which Traefik, in front of the gateway, gives up on a request whose body it has not sent yet.
	HoldTimeout time.Duration
	// MaxActive is how many requests and upgraded connections may be at instances: as many as [MaxConns].
	MaxActive int
	// MaxActivePerWebspace is how many may be at one webspace, so that one that accepts everything and answers nothing
	// takes nothing from the others: a tenth of MaxActive, but from 32 to 1024.
	MaxActivePerWebspace int
	// MaxActivePerSource is how many one client may have there, so that one that sends its requests byte by byte keeps
	// nobody out of a webspace: half of MaxActivePerWebspace. A client is an IPv4 address, or an IPv6
	// network of 64 bits; trusted proxies, and who has no address, are none.
	MaxActivePerSource int
	// ResponseTimeout is how long a target may think before it answers: 300 seconds.
	ResponseTimeout time.Duration
	// IdleTimeout ends a request, a response or an upgraded connection on which nothing has moved in either
	// direction for that long: 5 minutes.
	IdleTimeout time.Duration
	// TrustedProxies are the addresses whose X-Forwarded-*, Forwarded and X-Real-Ip headers are believed. All others'
	// are dropped. A trusted proxy must send X-Forwarded-For, or all its clients count as one source.
	TrustedProxies []netip.Prefix
	// Challenge answers requests below /.well-known/acme-challenge/, with which a certificate authority asks whether a
	// host name is ours. It returns false, and leaves the response alone, for what is not its own: that is proxied like
	// any other request. A request that it answers boots nothing. Default: there is none.
	Challenge func(http.ResponseWriter, *http.Request) bool
	// HTTPSPort is where clients that come without TLS are sent to, at the same host: 443, in general. Those that come
	// through a trusted proxy are that proxy's business. Default: nobody is sent anywhere.
	HTTPSPort int
	// Logger gets a debug record for each failed request, and a warning where the cause is neither the client nor the
	// target. Default: nothing is logged.
	Logger *slog.Logger
}

// Gateway is an HTTP proxy that holds a request whose target takes no connections yet, and then proxies that very same
// request. It never reads the body before, so what the client sends meanwhile stays in the kernel's buffers.
//
// Create it with [NewGateway]; serve with [Gateway.Serve], or use it as a handler of another server. Only under Serve does
// it notice that a client has left before its request's body was read. [Conns] bound the connections, which it does not do
// itself. It is safe for concurrent use.
//
// A request that comes through TLS, not from a trusted proxy, must be for the host that the client has named in TLS, if it
// has named one, or it is answered with 421 (Misdirected Request): a client that shares a connection among hosts then opens
// another one.
type Gateway struct {
	router    Router
	activator Activator
	opts      GatewayOptions
	peers     peers
	transport transport
	proxy     *httputil.ReverseProxy
	server    *http.Server
	yielding  atomic.Bool // answers are the last ones on their connections

	mu      sync.Mutex
	live    map[*exchange]struct{}
	active  map[string]int       // exchanges that have an endpoint, by webspace
	sources map[netip.Prefix]int // of those, by client
	quiet   chan struct{}        // closed when live becomes empty; nil when nobody waits for it
	closing bool                 // whoever comes now is told to come back
	stats   GatewayStats
}

// GatewayStats count what a gateway has done since it was made.
type GatewayStats struct {
	Requests    uint64
	DialErrors  uint64 // tries to connect to an endpoint that failed; the request was then held, or went on being held
	ClientsGone uint64 // requests whose client left before it got an answer

	Live     int // requests and upgraded connections now
	Active   int // of those, at an instance now
	Upgraded int // upgraded connections (WebSocket) now

	// How often there were too many at instances for one more, by the limit that it hit. A request that was held then
	// tries again, the others are refused.
	RefusedWebspace, RefusedSource, RefusedTotal uint64

	// Failures counts the answers that the gateway itself gave, by status.
	Failures map[int]uint64
	Holds    HoldStats
}

// NewGateway returns a gateway to what router and activator know. nil options are the defaults.
func NewGateway(router Router, activator Activator, opts *GatewayOptions) *Gateway {
	g := &Gateway{router: router, activator: activator, live: map[*exchange]struct{}{}, active: map[string]int{}, sources: map[netip.Prefix]int{}}
	if opts != nil {
		g.opts = *opts
	}
	if g.opts.Holds == nil {
		g.opts.Holds = NewHolds(nil)
	}
	if g.opts.Logger == nil {
		g.opts.Logger = slog.New(slog.DiscardHandler)
	}
	for timeout, fallback := range map[*time.Duration]time.Duration{
		&g.opts.HoldTimeout: 50 * time.Second, &g.opts.ResponseTimeout: 300 * time.Second, &g.opts.IdleTimeout: 5 * time.Minute,
	} {
		if *timeout <= 0 {
			*timeout = fallback
		}
	}
	if g.opts.MaxActive <= 0 {
		g.opts.MaxActive = MaxConns()
	}
	if g.opts.MaxActivePerWebspace <= 0 {
		g.opts.MaxActivePerWebspace = min(max(g.opts.MaxActive/10, 32), 1024)
	}
	if g.opts.MaxActivePerSource <= 0 {
		g.opts.MaxActivePerSource = max(g.opts.MaxActivePerWebspace/2, 1)
	}
	g.peers = g.opts.TrustedProxies
	g.stats.Failures = map[int]uint64{}
	g.transport = newTransport(g.opts.ResponseTimeout)
	debug := slog.NewLogLogger(g.opts.Logger.Handler(), slog.LevelDebug)
	buffers := &bufferPool{sync.Pool{New: func() any { return new([32 << 10]byte) }}}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:      g.rewrite,
		Transport:    roundTripper{},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r).fail(err) },
		// What has no known length and Server-Sent Events are flushed at once; the rest soon, so that a small answer
		// still is one packet.
		FlushInterval: 20 * time.Millisecond,
		BufferPool:    buffers,
		ErrorLog:      debug,
	}
	g.server = &http.Server{
		Handler:           g,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    32 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          100,
			MaxReceiveBufferPerStream:     64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			SendPingTimeout:               30 * time.Second,
			WriteByteTimeout:              g.opts.IdleTimeout,
		},
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
		ConnState: ConnState,
		ErrorLog:  debug,
	}
	return g
}

// Serve serves the connections of l and closes it in the end. It returns http.ErrServerClosed after Shutdown, and only
// then or when l breaks. A listener of TLS connections, as that of a [TLSGateway], may negotiate "h2"; HTTP/2 without TLS is not spoken, as it would
// be one more way around whatever is in front. It may be called for several listeners.
func (g *Gateway) Serve(l net.Listener) error { return g.server.Serve(l) }

// Yield ends each connection with its next answer from now on, so that clients open new ones, to a successor: see the
// function of that name, for the listeners. Requests are served as before.
func (g *Gateway) Yield() { g.yielding.Store(true) }

// Shutdown closes the listeners, then waits for the requests and upgraded connections that are under way, held ones among
// them. When ctx ends before they do, held requests are answered with 503, the rest is cut off, and the error is ctx's.
// Either way nothing of the gateway runs any more when it returns, unless the Router or the Activator does not return. It
// may be called again.
func (g *Gateway) Shutdown(ctx context.Context) error {
	err := g.server.Shutdown(ctx)
	if e := g.wait(ctx); e != nil {
		err = e
	}
	live := g.close()
	if len(live) > 0 || err != nil {
		for _, x := range live {
			x.abort(errClosing)
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*lastWords)
		defer cancel()
		if g.wait(last) == nil {
			_ = g.server.Shutdown(last)
		}
		_ = g.server.Close()
	}
	g.transport.close()
	return err
}

// Stats returns the counters.
func (g *Gateway) Stats() GatewayStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	stats := g.stats
	stats.Live = len(g.live)
	stats.Failures = maps.Clone(stats.Failures)
	stats.Holds = g.opts.Holds.Stats()
	return stats
}

// ServeHTTP answers one request. It panics with http.ErrAbortHandler, as net/http wants it, when the client is to get no
// answer, or no more of one.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, gateway: g, request: r}
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, x))
	x.ctx, x.cancel = ctx, cancel
	x.body.exchange, x.body.from = x, r.Body
	if r.Body == nil || r.Body == http.NoBody {
		x.body.none = true
	}
	defer x.end()
	if !g.begin(x) {
		x.fail(errClosing)
		return
	}
	// The forms of a target that are not a path and a query are for other proxies and servers. CONNECT asks for a
	// tunnel, and TRACE shows scripts what only the server should see.
	switch {
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace:
		x.answer(answerMethod, errors.New("method not allowed"))
		return
	case r.URL.Opaque != "", r.URL.Path != "" && !strings.HasPrefix(r.URL.Path, "/"):
		x.answer(answerRequest, errors.New("request target is not a path"))
		return
	}
	host, ok := hostname(r.Host)
	if !ok {
		x.answer(answerHost, errors.New("malformed host"))
		return
	}
	if g.misdirected(r, host) {
		x.answer(answerMisdirected, errors.New("the host is not the one that the TLS connection is for"))
		return
	}
	if g.challenged(x, r) {
		return
	}
	target, err := g.router.Route(host)
	if (err == nil || errdefs.IsFailedPrecondition(err)) && g.redirects(r) {
		x.redirect(host)
		return
	}
	if errdefs.IsFailedPrecondition(err) { // there is no site here, unless with TLS
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		x.warn("routing failed", err)
		x.fail(err)
		return
	}
	x.target, x.source = target, g.peers.source(r)
	// The copy keeps what x does to the request away from the server, which looks at the original's body at the end.
	r = r.WithContext(ctx)
	if !x.body.none {
		r.Body = &x.body
	}
	g.proxy.ServeHTTP(x, r)
}

func (g *Gateway) rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In)
	out := pr.Out
	out.URL.Scheme, out.URL.User = "http", nil
	out.URL.RawQuery = pr.In.URL.RawQuery // ReverseProxy drops what it can not parse; nobody here looks at it
	out.Host = pr.In.Host
	if out.Body != nil {
		out.Body = &x.body // without ReverseProxy's wrapper, which a failed try would close for the next one
	}
	if len(pr.In.Trailer) > 0 { // their values are not there yet, and ReverseProxy's copy never gets them
		out.Trailer = http.Header{}
		for name := range pr.In.Trailer {
			if !forwards(name) && !spoofs(name) {
				out.Trailer[name] = nil
			}
		}
		x.body.trailer = out.Trailer
	}
	g.peers.forward(out, pr.In)
	// An upgrade is a tunnel that nothing looks into. To HTTP/2 it would carry requests past all of the above, and a
	// request with a body leaves it unclear where the tunnel begins.
	if upgrade := strings.ToLower(out.Header.Get("Upgrade")); upgrade != "" &&
		(out.Method != http.MethodGet || out.Body != nil || strings.HasPrefix(upgrade, "h2") || strings.HasPrefix(upgrade, "http")) {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	out.Header.Del("Http2-Settings")
}

// begin makes x part of what Shutdown waits for, and returns whether x may be served.
func (g *Gateway) begin(x *exchange) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live[x] = struct{}{}
	g.stats.Requests++
	return !g.closing
}

func (g *Gateway) end(x *exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.live, x)
	if len(g.live) == 0 && g.quiet != nil {
		close(g.quiet)
		g.quiet = nil
	}
}

// enter counts a request that has an endpoint, until leave. It returns an error if there are too many.
func (g *Gateway) enter(webspace string, source netip.Addr) error {
	network := sourceNetwork(source)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.stats.Active >= g.opts.MaxActive:
		g.stats.RefusedTotal++
		return tooMany("Too many requests are under way at the moment.", "total", g.opts.MaxActive)
	case g.active[webspace] >= g.opts.MaxActivePerWebspace:
		g.stats.RefusedWebspace++
		return tooMany("Too many requests to this webspace are under way.", "webspace", g.opts.MaxActivePerWebspace)
	case g.sources[network] >= g.opts.MaxActivePerSource && source.IsValid() && !g.peers.trust(source):
		g.stats.RefusedSource++
		return tooMany("Too many requests from your address are under way.", "source", g.opts.MaxActivePerSource)
	}
	g.stats.Active++
	g.active[webspace]++
	g.sources[network]++
	return nil
}

func (g *Gateway) leave(webspace string, source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stats.Active--
	decrement(g.active, webspace)
	decrement(g.sources, sourceNetwork(source))
}

func (g *Gateway) wait(ctx context.Context) error {
	g.mu.Lock()
	if len(g.live) == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.quiet == nil {
		g.quiet = make(chan struct{})
	}
	quiet := g.quiet
	g.mu.Unlock()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close refuses all that begins from now on and returns what is under way.
func (g *Gateway) close() []*exchange {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing = true
	live := make([]*exchange, 0, len(g.live))
	for x := range g.live {
		live = append(live, x)
	}
	return live
}

func (g *Gateway) count(change func(*GatewayStats)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.stats)
}

// bufferPool is for copying bodies.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) Get() []byte  { return p.pool.Get().(*[32 << 10]byte)[:] }
func (p *bufferPool) Put(b []byte) { p.pool.Put((*[32 << 10]byte)(b)) }

// Why the gateway itself ends an exchange.
var (
	errClosing error = &Failure{
		Reason: "The server is restarting. Try again in a moment.", RetryAfter: time.Second,
		Err: fmt.Errorf("the gateway shuts down: %w", errdefs.ErrUnavailable),
	}
	errIdle     = fmt.Errorf("nothing moved for too long: %w", context.DeadlineExceeded)
	errVanished = fmt.Errorf("one side acknowledges nothing any more: %w", context.DeadlineExceeded)
	errGone     = errors.New("the client has left")
)
