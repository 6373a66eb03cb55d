package traefiktest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
)

// victim is the host that others are after.
const victim = "bob.example.org"

// allSpellings are ways to say the victim's name, or to say it all.
func allSpellings() []string {
	spellings := []string{
		"*", "*.org", "*.example.org", "bob.example", "example.org", "bob.example.org.evil.org", "bob.example.org.evil.org.evil.org",
		"x.test`) || " + "HostRegexp" + "(`.*", "x.test`) || " + "PathPrefix" + "(`/", "{{ `bob.example.org` }}", "{any:.*}", "bob.example.org`,`x.org", "^.*$",
		"bob%2eexample%2eorg", "xn--bob-.example.org", "0.0.0.0", "::", "bob.example.org:80", "http://bob.example.org", "eve@bob.example.org",
		victim + "..", "." + victim, "..", strings.ToUpper(victim), "Bob.Example.Org", strings.ToUpper(victim) + ".", victim + ".",
	}
	for i := range len(victim) + 1 {
		for _, insert := range []string{"*", ".", "`", "{{", "-", "_", "%", "\\", "\x00", "\u200b", "\u00ad", "\n", " ", "x"} {
			spellings = append(spellings, victim[:i]+insert+victim[i:])
		}
	}
	for _, r := range []string{"\u212a", "\uff42", "\u03bf", "о", "\u2024", "\u3002", "\uff0e", "O", "0"} {
		spellings = append(spellings, strings.Replace(victim, "o", r, 1), strings.Replace(victim, ".", r, 1), strings.ReplaceAll(victim, "b", r))
	}
	return spellings
}

// spellings has somebody try to get hold of a host by other ways to spell it: first as the owner of routes, then as a
// visitor, by the Host header and by SNI.
func (s *suite) spellings() {
	spellings := allSpellings()
	require.Greater(s, len(spellings), 200)
	for _, kind := range []struct {
		name     string
		bob, eve string // backends
		ask      func(spelling string) string
	}{
		{"HTTP", s.backend("bob"), s.backend("eve"), s.askHTTP},
		{"SNI", s.tlsBackend("bob", testbed.NewCA(s.TB, "bob").Issue("bob")), s.tlsBackend("eve", testbed.NewCA(s.TB, "eve").Issue("eve")), s.askSNI},
	} {
		owner := s.route("ws-u1", kind.bob, victim)
		routes, taken := []provider.Route{owner}, map[provider.Host]bool{owner.Hosts[0]: true}
		for i, spelling := range spellings {
			if h, err := provider.ParseHost(spelling); err == nil && !taken[h] {
				taken[h] = true
				routes = append(routes, provider.Route{Name: fmt.Sprint("ws-eve", i), Hosts: []provider.Host{h}, Backend: kind.eve})
			}
		}
		require.Greater(s, len(routes), 20)
		s.put(routes...)
		for _, r := range routes { // a Traefik that read while they were written has some
			who := map[bool]string{true: "bob", false: "eve"}[r.Name == owner.Name]
			s.eventually(r.Hosts[0].String(), func() (string, string) { return kind.ask(r.Hosts[0].String()), who })
		}
		for _, spelling := range append(spellings, victim, victim+":80", victim+".:80", "BOB.example.org:8080") {
			who := kind.ask(spelling)
			// One dot at the end, the port and the case of letters are not part of a name.
			name, _, _ := strings.Cut(spelling, ":")
			if kind.name == "SNI" {
				name = spelling
			}
			h, err := provider.ParseHost(name)
			switch {
			case err == nil && h == owner.Hosts[0]:
				require.Equalf(s, "bob", who, "%s: %q", kind.name, spelling)
			case err == nil && taken[h]:
				require.Equalf(s, "eve", who, "%s: %q", kind.name, spelling)
			default:
				require.NotEqualf(s, "eve", who, "%s: %q", kind.name, spelling)
			}
		}
	}
}

// askHTTP sends a Host header as it is, and returns the first word of the answer.
func (s *suite) askHTTP(host string) string {
	if strings.ContainsAny(host, "\r\n") {
		return "" // no header any more
	}
	conn, err := net.DialTimeout("tcp", s.traefik.Web, 10*time.Second)
	require.NoError(s, err)
	defer conn.Close()
	require.NoError(s, conn.SetDeadline(time.Now().Add(10*time.Second)))
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(s, err, "%q", host)
	who, _, _ := strings.Cut(read(response), " ")
	return who
}

// askSNI begins TLS for a name as it is, and returns for whom the certificate is.
func (s *suite) askSNI(name string) string {
	raw, err := net.DialTimeout("tcp", s.traefik.Secure, 10*time.Second)
	require.NoError(s, err)
	defer raw.Close()
	require.NoError(s, raw.SetDeadline(time.Now().Add(10*time.Second)))
	conn := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.HandshakeContext(s.Context()); err != nil {
		return "" // nobody takes it
	}
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}
