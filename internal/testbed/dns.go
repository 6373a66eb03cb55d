package testbed

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Proofs serves these TXT records, one for each absolute name, until the test ends. To others there is no such name.
func Proofs(t testing.TB, records map[string]string) (address string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(r)
		reply.Authoritative = true
		name := strings.ToLower(r.Question[0].Name)
		if text, ok := records[name]; ok && r.Question[0].Qtype == dns.TypeTXT {
			reply.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{text}}}
		} else if !ok {
			reply.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	return conn.LocalAddr().String()
}
