package webspace_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

// zone serves DNS on the loopback, over UDP and TCP.
func zone(t *testing.T, answer dns.HandlerFunc) (address string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	conn, err := net.ListenPacket("udp", listener.Addr().String())
	require.NoError(t, err)
	for _, server := range []*dns.Server{{PacketConn: conn, Handler: answer}, {Listener: listener, Handler: answer}} {
		started, ended := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			_ = server.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-ended
		})
	}
	return conn.LocalAddr().String()
}

// records answers authoritatively, from records in zone file syntax. One named *.x stands for all names below x.
func records(t *testing.T, lines ...string) dns.HandlerFunc {
	var all []dns.RR
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		require.NoError(t, err)
		all = append(all, rr)
	}
	return func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		reply.Authoritative = true
		name, exists := strings.ToLower(query.Question[0].Name), false
		for range 10 {
			alias := ""
			for _, rr := range all {
				owner := rr.Header().Name
				if star, ok := strings.CutPrefix(owner, "*."); owner != name && !(ok && strings.HasSuffix(name, "."+star)) {
					continue
				}
				exists = true
				copied := dns.Copy(rr)
				copied.Header().Name = name
				if cname, ok := copied.(*dns.CNAME); ok {
					alias = cname.Target
				} else if rr.Header().Rrtype != query.Question[0].Qtype {
					continue
				}
				reply.Answer = append(reply.Answer, copied)
			}
			if name = alias; name == "" {
				break
			}
		}
		if !exists {
			reply.Rcode = dns.RcodeNameError
		}
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		if w.RemoteAddr().Network() == "tcp" {
			size = dns.MaxMsgSize
		}
		reply.Truncate(size)
		_ = w.WriteMsg(reply)
	}
}

const key = "0123456789abcdef0123456789abcdef"

func proof(t *testing.T, resolver string) *webspace.DomainProof {
	p, err := webspace.NewDomainProof(&webspace.ProofOptions{Key: []byte(key), Resolver: resolver})
	require.NoError(t, err)
	return p
}

func TestProof(t *testing.T) {
	const user, other, domain = 1000, 1001, "club.example.org"
	tokens := proof(t, "")
	token := tokens.Records(user, domain)[0].Text
	require.Regexp(t, `^webspace:token:[0-9a-f]{32}$`, token)
	txt := func(name string, text ...string) string {
		quoted := make([]string, len(text))
		for i, s := range text {
			quoted[i] = fmt.Sprintf("%q", s)
		}
		return name + ". 60 IN TXT " + strings.Join(quoted, " ")
	}
	at := "_webspaced." + domain
	many := []string{txt(at, token)}
	for i := range 1500 {
		many = append(many, txt(at, fmt.Sprintf("v=%d", i)))
	}
	var long []string
	for i := range 200 { // nearly 64 KiB
		long = append(long, txt(at, strings.Repeat("a", 255), fmt.Sprintf("%050d", i)))
	}
	for _, test := range []struct {
		name    string
		records []string
		proven  bool
	}{
		{"nothing", nil, false},
		{"token", []string{txt(at, token)}, true},
		{"ID below", []string{txt(at, "webspace:id:1000")}, true},
		{"ID at the domain", []string{txt(domain, "webspace:id:1000")}, true},
		{"among others", []string{txt(domain, "v=spf1 -all"), txt(at, "x"), txt(at, token)}, true},
		{"split strings", []string{txt(at, "webspace:", token[len("webspace:"):20], "", token[20:])}, true},
		{"thousands", many, true},
		{"64 KiB", append(long, txt(at, token)), true},
		{"64 KiB of others", long, false},
		{"wildcard TXT of the right user", []string{txt("*."+domain, "webspace:id:1000")}, true},

		{"token at the domain", []string{txt(domain, token)}, false},
		{"token of another user", []string{txt(at, tokens.Records(other, domain)[0].Text)}, false},
		{"token of another domain", []string{txt(at, tokens.Records(user, "example.org")[0].Text)}, false},
		{"other ID", []string{txt(at, "webspace:id:1001")}, false},
		{"ID that begins alike", []string{txt(at, "webspace:id:10000"), txt(at, "webspace:id:100")}, false},
		{"spelt otherwise", []string{
			txt(at, strings.ToUpper(token)), txt(at, " "+token), txt(at, token+" "), txt(at, token+"\n"), txt(at, token+" webspace:id:1001"),
			txt(at, "webspace:id:01000"), txt(at, "webspace:id:+1000"), txt(at, "webspace:id:1000."), txt(at, "WEBSPACE:ID:1000"), txt(at, "webspace:id: 1000"),
		}, false},
		{"two records are one text", []string{txt(at, "webspace:id:"), txt(at, "1000")}, false},
		{"above", []string{txt("_webspaced.example.org", "webspace:id:1000"), txt("example.org", "webspace:id:1000")}, false},
		{"below", []string{txt("_webspaced.www."+domain, "webspace:id:1000"), txt("www."+domain, "webspace:id:1000")}, false},
		{"search list", []string{txt(at+".local", token), txt(domain+".example.org", "webspace:id:1000")}, false},
		{"alias of the domain", []string{domain + ". CNAME old.example.net.", txt("old.example.net", "webspace:id:1000")}, false},
		{"alias of the label", []string{at + ". CNAME old.example.net.", txt("old.example.net", token)}, false},
		{"wildcard alias", []string{"*." + domain + ". CNAME a.example.net.", "a.example.net. CNAME b.example.net.", txt("b.example.net", token)}, false},
		{"alias loop", []string{at + ". CNAME " + at + "."}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := proof(t, zone(t, records(t, test.records...))).Verify(t.Context(), user, domain)
			if test.proven {
				require.NoError(t, err)
				return
			}
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
			require.False(t, errdefs.IsUnavailable(err), "%v", err)
			require.ErrorContains(t, err, `TXT record named `+at+` with the text "`+token+`"`)
			require.ErrorContains(t, err, "; found ")
			require.Less(t, len(err.Error()), 1500)
		})
	}
}

func TestProofWithoutKey(t *testing.T) {
	resolver := zone(t, records(t, `_webspaced.club.example.org. TXT "webspace:token:"`, `_webspaced.club.example.org. TXT "webspace:id:1"`))
	p, err := webspace.NewDomainProof(&webspace.ProofOptions{Resolver: resolver})
	require.NoError(t, err)
	require.NoError(t, p.Verify(t.Context(), 1, "club.example.org"))
	err = p.Verify(t.Context(), 2, "Club.Example.ORG.")
	require.ErrorContains(t, err, `named _webspaced.club.example.org with the text "webspace:id:2"`)
	require.ErrorContains(t, err, `"webspace:id:1" at _webspaced.club.example.org`)
	require.Len(t, p.Records(2, "club.example.org"), 2)
}

// An error that DNS is to blame for can be told from a record that is not there.
func TestProofWithoutAnswer(t *testing.T) {
	code := func(rcode int) dns.HandlerFunc {
		return func(w dns.ResponseWriter, query *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(query, rcode)) }
	}
	for name, handler := range map[string]dns.HandlerFunc{
		"servfail": code(dns.RcodeServerFailure),
		"refused":  code(dns.RcodeRefused),
		"lame":     code(dns.RcodeSuccess), // neither authoritative nor recursive
		"silent":   func(dns.ResponseWriter, *dns.Msg) {},
		"cut for ever": func(w dns.ResponseWriter, query *dns.Msg) {
			reply := new(dns.Msg).SetReply(query)
			reply.Truncated = true
			_ = w.WriteMsg(reply)
		},
		"garbage": func(w dns.ResponseWriter, _ *dns.Msg) { _, _ = w.Write([]byte("\x00\x01garbage")) },
		"another question": func(w dns.ResponseWriter, query *dns.Msg) {
			query.Question[0].Name = "other.example."
			records(t, `*.example. TXT "webspace:id:1"`)(w, query)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := webspace.NewDomainProof(&webspace.ProofOptions{Resolver: zone(t, handler), Timeout: 500 * time.Millisecond})
			require.NoError(t, err)
			err = p.Verify(t.Context(), 1, "club.example.org")
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
			require.ErrorContains(t, err, "DNS does not answer")
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		err := proof(t, "127.0.0.1:1").Verify(t.Context(), 1, "club.example.org")
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
	})
	t.Run("caller leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := proof(t, zone(t, func(dns.ResponseWriter, *dns.Msg) { cancel() }))
		require.ErrorIs(t, p.Verify(ctx, 1, "club.example.org"), context.Canceled)
	})
}

// A server that fails every other time does no harm.
func TestProofFlipFlop(t *testing.T) {
	var n atomic.Int32
	good := records(t, `_webspaced.club.example.org. TXT "webspace:id:1"`)
	p := proof(t, zone(t, func(w dns.ResponseWriter, query *dns.Msg) {
		if n.Add(1)%2 == 1 {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(query, dns.RcodeServerFailure))
			return
		}
		good(w, query)
	}))
	for range 10 {
		// Of the two names, both may get the failures of a round: then it is told that DNS did not answer.
		if err := p.Verify(t.Context(), 1, "club.example.org"); err != nil {
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
	}
}

func TestProofOptions(t *testing.T) {
	for _, opts := range []webspace.ProofOptions{
		{Key: []byte("short")}, {Resolver: "dns.example.org:53"}, {Resolver: "127.0.0.1"}, {Resolver: "127.0.0.1:0"}, {Timeout: -1},
	} {
		_, err := webspace.NewDomainProof(&opts)
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	}
	require.True(t, errdefs.IsInvalidArgument(proof(t, "").Verify(t.Context(), 1, "*.example.org")))
}
