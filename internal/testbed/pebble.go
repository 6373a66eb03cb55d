package testbed

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// pebbleVersion is the one that test/pebble/go.mod requires.
const pebbleVersion = "v2.10.3"

// Authority is a running Pebble, an ACME certificate authority, with a DNS server of its own. To it, every host is on the
// loopback: it connects to the ports of HTTP and TLS there.
type Authority struct {
	// Directory is the URL of the directory, CAFile what its own certificate is checked with.
	Directory, CAFile string
	// HTTP and TLS are the addresses at which it looks for answers to challenges. Nobody listens there yet.
	HTTP, TLS string

	management string
	log        *log

	mu      sync.Mutex
	missing map[string]bool
}

// Pebble starts a Pebble whose certificates are valid for this long. It ends with the test.
func Pebble(t testing.TB, validity time.Duration) *Authority {
	t.Helper()
	binary := filepath.Join(cache(), "pebble-"+pebbleVersion)
	if _, err := os.Stat(binary); err != nil {
		missing(t, "needs Pebble %s: test/pebble/build builds it", pebbleVersion)
	}
	a := &Authority{log: &log{}, missing: map[string]bool{}}
	var err error
	for range 3 {
		if err = a.start(t, binary, validity); err == nil {
			return a
		}
	}
	t.Fatalf("Pebble does not start: %v\n%s", err, a.log)
	return nil
}

func (a *Authority) start(t testing.TB, binary string, validity time.Duration) error {
	addresses, home := Addresses(t, 4), t.TempDir()
	certificate, key := filepath.Join(home, "cert.pem"), filepath.Join(home, "key.pem")
	if err := writeServerCert(certificate, key); err != nil {
		return err
	}
	resolver, err := a.serveDNS(t)
	if err != nil {
		return err
	}
	port := func(address string) int {
		parsed, _ := net.ResolveTCPAddr("tcp", address)
		return parsed.Port
	}
	a.HTTP, a.TLS, a.management = addresses[2], addresses[3], addresses[1]
	a.Directory, a.CAFile = "https://"+addresses[0]+"/dir", certificate
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": addresses[0], "managementListenAddress": addresses[1],
		"certificate": certificate, "privateKey": key,
		"httpPort": port(a.HTTP), "tlsPort": port(a.TLS),
		"retryAfter": map[string]int{"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
		"profiles": map[string]any{"default": map[string]any{"description": "default", "validityPeriod": int(validity / time.Second)}},
	}})
	if err != nil {
		return err
	}
	file := filepath.Join(home, "pebble.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(binary, "-config", file, "-dnsserver", resolver)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=15")
	cmd.Stdout, cmd.Stderr = a.log, a.log
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			said := a.log.String()
			t.Logf("Pebble said at the end:\n%s", said[max(0, len(said)-4000):])
		}
	})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err := a.get(a.Directory); err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("no answer")
}

func (a *Authority) get(url string) ([]byte, error) {
	text, err := os.ReadFile(a.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
	}}
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return io.ReadAll(response.Body)
}

// Roots are what clients check the certificates with that it issues.
func (a *Authority) Roots(t testing.TB) *x509.CertPool {
	t.Helper()
	text, err := a.get("https://" + a.management + "/roots/0")
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("roots of Pebble: %v", err)
	}
	return pool
}

// Orders returns how many orders it has taken.
func (a *Authority) Orders() int { return strings.Count(a.log.String(), "Added order ") }

// Resolve says whether a host is in DNS. At first, all are.
func (a *Authority) Resolve(host string, there bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.missing[dns.Fqdn(host)] = !there
}

func (a *Authority) serveDNS(t testing.TB) (address string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	conn, err := net.ListenPacket("udp", listener.Addr().String())
	if err != nil {
		return "", errors.Join(err, listener.Close())
	}
	for _, server := range []*dns.Server{{PacketConn: conn, Handler: a}, {Listener: listener, Handler: a}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
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
	return conn.LocalAddr().String(), nil
}

// ServeDNS implements [dns.Handler].
func (a *Authority) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	question := query.Question[0]
	a.mu.Lock()
	gone := a.missing[strings.ToLower(question.Name)]
	a.mu.Unlock()
	switch {
	case gone:
		reply.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		reply.Answer = append(reply.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1),
		})
	}
	_ = w.WriteMsg(reply)
}
