package webspace

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Whatever a server sends, only the very text in a TXT record of the very name proves anything.
func FuzzProofAnswer(f *testing.F) {
	const name, want = "_webspaced.club.example.org.", "webspace:id:1"
	question := dns.Question{Name: name, Qtype: dns.TypeTXT, Qclass: dns.ClassINET}
	for _, line := range []string{
		name + ` TXT "webspace:id:1"`, name + ` TXT "webspace:" "id:1"`, name + ` TXT "webspace:id:1\000"`, name + ` TXT "\119ebspace:id:1"`,
		name + ` CNAME other.example.`, `other.example. TXT "webspace:id:1"`, name + ` TXT "webspace:id:10"`,
	} {
		rr, err := dns.NewRR(line)
		require.NoError(f, err)
		reply := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(name, dns.TypeTXT))
		reply.Authoritative = true
		reply.Answer = []dns.RR{rr}
		packed, err := reply.Pack()
		require.NoError(f, err)
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		reply := new(dns.Msg)
		if reply.Unpack(message) != nil {
			return
		}
		all, err := texts(reply, question)
		if err != nil {
			require.Empty(t, all)
			return
		}
		if !proven(all, want) {
			return
		}
		exact := false
		for _, rr := range reply.Answer {
			if txt, ok := rr.(*dns.TXT); ok && strings.EqualFold(rr.Header().Name, name) {
				exact = exact || strings.Join(txt.Txt, "") == want
			}
		}
		require.True(t, exact, "%s", reply)
	})
}
