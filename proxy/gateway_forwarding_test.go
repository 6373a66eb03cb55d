package proxy_test

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// showHeaders answers with the headers of the request as JSON.
func showHeaders(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "X-Hop")
	w.Header().Set("X-Hop", "1")
	w.Header().Set("Keep-Alive", "timeout=5")
	w.Header().Set("Proxy-Authenticate", "Basic")
	_ = json.NewEncoder(w).Encode(r.Header)
}

func TestGatewayForwardingHeaders(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::ffff:127.0.0.0/104"), netip.MustParsePrefix("198.18.0.0/24")}
	for _, c := range []struct {
		name    string
		trusted []netip.Prefix
		headers string
		want    http.Header // nil value: must not be there
	}{
		{"nothing said", nil, "", http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"alice.test:81"},
			"Forwarded": nil, "X-Real-Ip": nil, "User-Agent": nil, "Accept-Encoding": nil,
		}},
		{"lies", nil, "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n" +
			"X-Forwarded-Port: 443\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Prefix: /x\r\nX-Forwarded: x\r\nForwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n" +
			"X-Forwarded-Tls-Client-Cert: x\r\nX-Forwarded-User: admin\r\n", http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"alice.test:81"}, "X-Forwarded-Port": nil,
			"X-Forwarded-Server": nil, "X-Forwarded-Prefix": nil, "X-Forwarded": nil, "Forwarded": nil, "X-Real-Ip": nil,
			"X-Forwarded-Tls-Client-Cert": nil, "X-Forwarded-User": nil,
		}},
		{"underscores", loopback, "X_Forwarded_For: 1.1.1.1\r\nX-Forwarded_For: 1.1.1.1\r\nX_REAL_IP: 1.1.1.1\r\nTransfer_Encoding: chunked\r\n" +
			"Content_Length: 5\r\nX_forwarded-proto: https\r\nX_Mine: 1\r\nProxy: http://evil\r\n", http.Header{
			"X_forwarded_for": nil, "X-Forwarded_for": nil, "X_real_ip": nil, "Transfer_encoding": nil, "Content_length": nil,
			"X_forwarded-Proto": nil, "X_mine": {"1"}, "Proxy": nil, "X-Forwarded-For": {"127.0.0.1"},
		}},
		{"named hop by hop", nil, "Connection: close, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, x-secret\r\nX-Secret: 1\r\nX-Forwarded-For: 1.1.1.1\r\n", http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"alice.test:81"}, "X-Secret": nil, "Connection": nil,
		}},
		{"hop by hop", nil, "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nTE: gzip\r\nUpgrade: websocket\r\n", http.Header{
			"Keep-Alive": nil, "Proxy-Connection": nil, "Proxy-Authorization": nil, "Te": nil, "Upgrade": nil, "Connection": nil,
		}},
		{"a trusted proxy", loopback, "X-Forwarded-For: 6.6.6.6, 2001:db8::1\r\nX-Forwarded-For: 198.18.0.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: www.test\r\n" +
			"X-Forwarded-Port: 443\r\nForwarded: for=1.1.1.1\r\nX-Real-Ip: 1.1.1.1\r\nConnection: X-Forwarded-For, X-Forwarded-Proto, X-Real-Ip, Forwarded\r\n", http.Header{
			"X-Forwarded-For": {"6.6.6.6, 2001:db8::1, 198.18.0.7, 127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"www.test"},
			"X-Forwarded-Port": {"443"}, "Forwarded": {"for=1.1.1.1"}, "X-Real-Ip": {"1.1.1.1"},
		}},
		{"a trusted proxy says nothing", loopback, "", http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"alice.test:81"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := serve(t, alice, running(instance(t, showHeaders)), &proxy.GatewayOptions{TrustedProxies: c.trusted})
			response, body := h.raw(t, "GET", "GET / HTTP/1.1\r\nHost: alice.test:81\r\n"+c.headers+"\r\n")
			require.Equal(t, 200, response.StatusCode)
			for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Authenticate"} {
				require.Empty(t, response.Header[name])
			}
			var got http.Header
			require.NoError(t, json.Unmarshal([]byte(body), &got))
			for name, want := range c.want {
				require.Equal(t, want, http.Header(got)[name], "%s in %v", name, got)
			}
		})
	}
}

// Bytes on which servers and proxies have disagreed. Each is one request at most to the instance; what the gateway takes
// for a second one it must say is one, with an answer of its own.
var smuggled = []string{
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: +3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 3 \r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 0x3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length : 3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 3, 3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: -1\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n1;x=\n\r\nZ\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n1\nZ\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nZ\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nZ\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For, X-A\r\n\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nX-A: 1\r\nX-B: 2\r\n\r\n",
	"GET / HTTP/1.0\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 5\r\n\r\nGET /",
	"GET / HTTP/1.1\r\n Host: alice.test\r\nHost: bob.test\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: alice.test\r\nX-Forwarded-For\x00: 1\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: alice.test\r\nX-Forwarded-For : 6.6.6.6\r\n\r\n",
	"GET /\r\nX: HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	"GET / HTTP/1.1 \r\nHost: alice.test\r\n\r\n",
	"GET  / HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	"GET / HTTP/2.0\r\nHost: alice.test\r\n\r\n",
	"GET /%0d%0aX-Forwarded-For:%206.6.6.6 HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	"GET http://alice.test@bob.test/ HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	"GET //bob.test/ HTTP/1.1\r\nHost: alice.test\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: alice.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
	"GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: Host, X-Forwarded-For, Content-Length\r\nContent-Length: 3\r\n\r\nabc",
	"\x16\x03\x01\x00\x05hello",
}
