package proxy

import (
	"net"
	"net/http"
	"strconv"
	"strings"
)

// misdirected tells whether a request came through a TLS connection that is for another host: one certificate may be for
// several. A trusted proxy names in TLS whatever it likes.
func (g *Gateway) misdirected(r *http.Request, host string) bool {
	return r.TLS != nil && r.TLS.ServerName != "" && !strings.EqualFold(strings.TrimSuffix(host, "."), r.TLS.ServerName) &&
		!g.peers.trust(peer(r))
}

// challenged tells whether a request was answered as a challenge of a certificate authority.
func (g *Gateway) challenged(w http.ResponseWriter, r *http.Request) bool {
	return g.opts.Challenge != nil && strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") && g.opts.Challenge(w, r)
}

// redirects tells whether the client should have come with TLS.
func (g *Gateway) redirects(r *http.Request) bool {
	return g.opts.HTTPSPort > 0 && r.TLS == nil && !g.peers.trust(peer(r))
}

// redirect sends the client to HTTPS at a host, of which the router knows that it is ours.
func (x *exchange) redirect(host string) {
	if port := x.gateway.opts.HTTPSPort; port != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(port))
	}
	// The status makes clients send the same request again, with its method and body.
	x.Header().Set("Location", "https://"+host+x.request.URL.RequestURI())
	x.Header().Set("Content-Length", "0")
	x.WriteHeader(http.StatusPermanentRedirect)
}
