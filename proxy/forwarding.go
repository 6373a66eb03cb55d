package proxy

import (
	"net/http"
	"net/netip"
	"strings"
)

// hostname returns the host of a Host header, without port and brackets. It is strict, as the names that a webspace can
// have are: letters, digits, '-', '_' and '.', or an IP literal.
func hostname(host string) (string, bool) {
	if literal, ok := strings.CutPrefix(host, "["); ok {
		literal, port, ok := strings.Cut(literal, "]")
		addr, err := netip.ParseAddr(literal)
		return literal, ok && err == nil && addr.Is6() && addr.Zone() == "" && (port == "" || port[0] == ':' && isPort(port[1:]))
	}
	name, port, _ := strings.Cut(host, ":")
	if name == "" || len(name) > 254 || !isPort(port) {
		return "", false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return "", false
		}
	}
	return name, true
}

// isPort allows the empty port, as RFC 3986 does.
func isPort(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(s) <= 5
}

// peers knows which of a request's forwarding headers to believe.
type peers []netip.Prefix

func (p peers) trust(addr netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// peer returns the address at the other end of the connection; zero if it is none, as on a Unix socket.
func peer(r *http.Request) netip.Addr {
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	return addr.Addr().Unmap().WithZone("")
}

// source returns the client's address: the last one on the way here that is not one of our proxies. What stands to the
// left of it in X-Forwarded-For anyone can have written.
func (p peers) source(r *http.Request) netip.Addr {
	source := peer(r)
	if len(p) == 0 || !p.trust(source) {
		return source
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for line, last := lines[i], ""; line != ""; {
			if comma := strings.LastIndexByte(line, ','); comma >= 0 {
				line, last = line[:comma], line[comma+1:]
			} else {
				line, last = "", line
			}
			addr, err := netip.ParseAddr(strings.TrimSpace(last))
			if err != nil {
				return source
			}
			if source = addr.Unmap().WithZone(""); !p.trust(source) {
				return source
			}
		}
	}
	return source
}

// forward makes out's forwarding headers: what in says if a trusted proxy sent it, and ours. It takes them from in, not
// from what is left in out, because "Connection: X-Forwarded-For" makes a proxy drop the header that it names.
func (p peers) forward(out, in *http.Request) {
	from := peer(in)
	trusted := p.trust(from)
	for name := range out.Header {
		if forwards(name) || spoofs(name) {
			delete(out.Header, name)
		}
	}
	var hops []string
	if trusted {
		for name, values := range in.Header {
			if forwards(name) {
				out.Header[name] = values
			}
		}
		hops = in.Header["X-Forwarded-For"]
	}
	delete(out.Header, "X-Forwarded-For")
	if from.IsValid() {
		hops = append(hops[:len(hops):len(hops)], from.String())
	}
	if len(hops) > 0 {
		out.Header["X-Forwarded-For"] = []string{strings.Join(hops, ", ")}
	}
	if out.Header.Get("X-Forwarded-Proto") == "" {
		proto := "http"
		if in.TLS != nil {
			proto = "https"
		}
		out.Header["X-Forwarded-Proto"] = []string{proto}
	}
	if out.Header.Get("X-Forwarded-Host") == "" {
		out.Header["X-Forwarded-Host"] = []string{in.Host}
	}
}

// forwards tells whether a header says where a request has come from. Names are in the form of
// [http.CanonicalHeaderKey], as in every request that net/http has parsed.
func forwards(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded") && !strings.Contains(name, "_") || name == "Forwarded" || name == "X-Real-Ip"
}

// spoofs tells whether an application may take a header for another one. CGI and its heirs turn X_Forwarded_For into the
// same variable as X-Forwarded-For, and Proxy into HTTP_PROXY, the proxy of whatever the application asks.
func spoofs(name string) bool {
	if name == "Proxy" {
		return true
	}
	if !strings.Contains(name, "_") {
		return false
	}
	name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	switch name {
	case "Connection", "Content-Length", "Host", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return forwards(name)
}
