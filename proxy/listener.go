package proxy

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// ConnLimits bound [Conns]. Zero means the default.
type ConnLimits struct {
	// Total is how many connections may be open at all. Default: [MaxConns].
	Total int
	// Source is how many one client may have open: 256, but not more than a quarter of Total. A client is an IPv4
	// address, or an IPv6 network of 64 bits, because whoever has one address there has all of them.
	Source int
	// Exempt are the addresses that count in Total only: proxies in front, which connect on behalf of many clients.
	Exempt []netip.Prefix
}

// MaxConns returns how many connections a gateway or a forwarder takes by default: 10,000, unless the process may have too
// few file descriptors for that. A connection takes two of them, its own and the one to an instance, and those of both at
// most three quarters of what there is. Pipes for what is moved take an eighth, and the rest is for everything else that the
// process does.
func MaxConns() int {
	if limit := descriptorLimit(); limit > 0 {
		return max(min(10_000, limit/16*3), 1)
	}
	return 10_000
}

// Conns counts the connections of listeners and refuses those that are too many. One Conns may be shared by listeners.
//
// A connection waits from its acceptance to its first request, and between requests. When there are too many, the one
// that has waited longest is closed to make room: of the same client if that client has too many, else of all. Only where
// none waits is the new one closed instead. [ConnState] says which ones wait.
//
// It is safe for concurrent use.
type Conns struct {
	limits ConnLimits
	exempt peers

	mu      sync.Mutex
	stats   ConnStats
	waiting list.List // of *limitedConn; who has waited longest is in front
	sources map[netip.Prefix]*connSource
}

// ConnStats say how full [Conns] are.
type ConnStats struct {
	Open    int // now
	Waiting int // for a request, of those that are open
	Sources int // that have connections now; exempt ones are not counted

	Evicted                     uint64 // closed to make room, since the start
	RefusedSource, RefusedTotal uint64 // closed at once, since the start, by the limit that they hit
}

type connSource struct {
	network netip.Prefix
	open    int
	waiting list.List // of *limitedConn, as in Conns
}

// NewConns returns Conns of which none is open. nil limits are the defaults.
func NewConns(limits *ConnLimits) *Conns {
	c := &Conns{sources: map[netip.Prefix]*connSource{}}
	if limits != nil {
		c.limits = *limits
	}
	if c.limits.Total <= 0 {
		c.limits.Total = MaxConns()
	}
	if c.limits.Source <= 0 {
		c.limits.Source = max(min(256, c.limits.Total/4), 1)
	}
	c.exempt = c.limits.Exempt
	return c
}

// Listen returns a listener that passes on the connections of l within the limits. It goes below TLS, so that handshakes
// count as well. The connections of a TCP listener have all methods of a [*net.TCPConn], and NetConn, which returns it;
// they must be closed themselves, or they go on counting.
func (c *Conns) Listen(l net.Listener) net.Listener { return &limitListener{l, c} }

// Stats returns the counters.
func (c *Conns) Stats() ConnStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := c.stats
	stats.Waiting, stats.Sources = c.waiting.Len(), len(c.sources)
	return stats
}

// ConnState is for the field of that name in [http.Server]. [Gateway] has it already. What serves connections of [Conns]
// in any other way calls it with [http.StateActive], or they may be closed at any moment. It ignores other connections.
func ConnState(conn net.Conn, state http.ConnState) {
	for {
		switch c := conn.(type) {
		case *limitedConn:
			c.conns.wait(c, state == http.StateNew || state == http.StateIdle)
			return
		case *limitedTCPConn:
			conn = c.limited
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return
		}
	}
}

type limitListener struct {
	net.Listener
	conns *Conns
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp := socketOf(conn)
		limited := l.conns.admit(conn)
		switch {
		case limited == nil && tcp != nil:
			_ = tcp.SetLinger(0) // leaves nothing behind, not even in the kernel
			fallthrough
		case limited == nil:
			_ = conn.Close()
		case tcp != nil:
			return &limitedTCPConn{tcp, limited}, nil
		default:
			return limited, nil
		}
	}
}

// limitedConn is a connection that counts until it is closed.
type limitedConn struct {
	net.Conn
	conns  *Conns
	source *connSource // nil if exempt

	// Guarded by conns.
	closed          bool
	inAll, inSource *list.Element // nil while it does not wait
}

func (c *limitedConn) NetConn() net.Conn { return c.Conn }

func (c *limitedConn) Close() error {
	c.conns.mu.Lock()
	c.conns.remove(c)
	c.conns.mu.Unlock()
	return c.Conn.Close()
}

// limitedTCPConn keeps what others look for in a TCP connection: half-closing, splicing and the socket.
type limitedTCPConn struct {
	*net.TCPConn
	limited *limitedConn
}

func (c *limitedTCPConn) NetConn() net.Conn { return c.TCPConn }
func (c *limitedTCPConn) Close() error      { return c.limited.Close() }

// What a PROXY header has said of them is kept.
func (c *limitedTCPConn) RemoteAddr() net.Addr { return c.limited.RemoteAddr() }
func (c *limitedTCPConn) LocalAddr() net.Addr  { return c.limited.LocalAddr() }

// admit counts conn, which waits now. It returns nil if there is no room for it.
func (c *Conns) admit(conn net.Conn) *limitedConn {
	limited := &limitedConn{Conn: conn, conns: c}
	// What is not from an IP address comes from this host, by whoever may use the socket's file.
	address, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	client := address.Addr().Unmap().WithZone("")
	counted := err == nil && !c.exempt.trust(client)

	c.mu.Lock()
	defer c.mu.Unlock()
	if counted {
		network := sourceNetwork(client)
		if limited.source = c.sources[network]; limited.source == nil {
			limited.source = &connSource{network: network}
		}
		if limited.source.open >= c.limits.Source && !c.evict(&limited.source.waiting) {
			c.stats.RefusedSource++
			return nil
		}
	}
	if c.stats.Open >= c.limits.Total && !c.evict(&c.waiting) {
		c.stats.RefusedTotal++
		return nil
	}
	c.stats.Open++
	if limited.source != nil {
		limited.source.open++
		c.sources[limited.source.network] = limited.source // again, if its last connection has just been evicted
	}
	c.push(limited)
	return limited
}

// evict closes the first of those that wait, and returns whether there was one.
func (c *Conns) evict(waiting *list.List) bool {
	first := waiting.Front()
	if first == nil {
		return false
	}
	conn := first.Value.(*limitedConn)
	c.remove(conn)
	c.stats.Evicted++
	_ = conn.Conn.Close() // does not block: nothing lingers
	return true
}

func (c *Conns) wait(conn *limitedConn, waits bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case conn.closed || waits == (conn.inAll != nil):
	case waits:
		c.push(conn)
	default:
		c.pull(conn)
	}
}

func (c *Conns) push(conn *limitedConn) {
	conn.inAll = c.waiting.PushBack(conn)
	if conn.source != nil {
		conn.inSource = conn.source.waiting.PushBack(conn)
	}
}

func (c *Conns) pull(conn *limitedConn) {
	if conn.inAll == nil {
		return
	}
	c.waiting.Remove(conn.inAll)
	if conn.source != nil {
		conn.source.waiting.Remove(conn.inSource)
	}
	conn.inAll, conn.inSource = nil, nil
}

func (c *Conns) remove(conn *limitedConn) {
	if conn.closed {
		return
	}
	conn.closed = true
	c.pull(conn)
	c.stats.Open--
	if conn.source != nil {
		if conn.source.open--; conn.source.open == 0 {
			delete(c.sources, conn.source.network)
		}
	}
}
