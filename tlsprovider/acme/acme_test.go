package acme_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/acme"
	"github.com/netsoc/webspaced/tlsprovider/issuertest"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// world is a Pebble, and what answers on the ports of its hosts: the issuers of the test.
type world struct {
	*testbed.Authority
	front *front

	mu      sync.Mutex
	issuers map[*acme.Issuer]bool
}

// front stands before the authority and has its faults.
type front struct {
	url, ca string
	fault   atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newWorld(t *testing.T, validity time.Duration) *world {
	w := &world{Authority: testbed.Pebble(t, validity), issuers: map[*acme.Issuer]bool{}}
	plain, err := net.Listen("tcp", w.HTTP)
	require.NoError(t, err)
	serve(t, &http.Server{Handler: w, ReadHeaderTimeout: 5 * time.Second}, plain)
	secure, err := tls.Listen("tcp", w.TLS, &tls.Config{GetCertificate: w.certificate, NextProtos: []string{"http/1.1", acme.ALPN}})
	require.NoError(t, err)
	serve(t, &http.Server{Handler: http.NotFoundHandler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}, secure)

	target, err := url.Parse(strings.TrimSuffix(w.Directory, "/dir"))
	require.NoError(t, err)
	roots := roots(t, w.CAFile)
	w.front = &front{ca: w.CAFile}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.front.url = fmt.Sprintf("https://%s/dir", listener.Addr())
	pair, err := tls.LoadX509KeyPair(w.CAFile, filepath.Join(filepath.Dir(w.CAFile), "key.pem"))
	require.NoError(t, err)
	serve(t, &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if fault := w.front.fault.Load(); fault == nil || !(*fault)(rw, r) {
			proxy.ServeHTTP(rw, r)
		}
	})}, tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}}))
	return w
}

func serve(t *testing.T, server *http.Server, listener net.Listener) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	for _, issuer := range w.all() {
		if issuer.HandleChallenge(rw, r) {
			return
		}
	}
	http.NotFound(rw, r)
}

func (w *world) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, issuer := range w.all() {
		if certificate, err := issuer.GetCertificate(hello); err == nil {
			return certificate, nil
		}
	}
	return nil, errors.New("nobody has a certificate")
}

func (w *world) all() []*acme.Issuer {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*acme.Issuer
	for issuer := range w.issuers {
		all = append(all, issuer)
	}
	return all
}

func (w *world) open(dir string, opts acme.Options) (*acme.Issuer, error) {
	opts.Directory, opts.CAFile, opts.Email = w.front.url, w.front.ca, "admin@example.org"
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	issuer, err := acme.New(dir, &opts)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issuers[issuer] = true
	return issuer, nil
}

func (w *world) issuer(t *testing.T, dir string, opts acme.Options) *acme.Issuer {
	t.Helper()
	issuer, err := w.open(dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, issuer.Close()) })
	return issuer
}

func order(t *testing.T, issuer *acme.Issuer, name, owner string) tlsprovider.Status {
	t.Helper()
	status, err := issuer.Order(t.Context(), tlsprovider.Order{Host: host(t, name), Owner: owner})
	require.NoError(t, err)
	return status
}

func host(t *testing.T, name string) provider.Host {
	t.Helper()
	host, err := provider.ParseHost(name)
	require.NoError(t, err)
	return host
}

// until waits for the status of an order to be as wanted.
func until(t *testing.T, issuer *acme.Issuer, name string, wanted func(tlsprovider.Status) bool) tlsprovider.Status {
	t.Helper()
	var status tlsprovider.Status
	require.Eventuallyf(t, func() bool {
		status = order(t, issuer, name, "ws-u1")
		return wanted(status)
	}, 40*time.Second, 20*time.Millisecond, "%s", name)
	return status
}

func issued(s tlsprovider.Status) bool { return s.Certificate.Chain != "" && s.Problem == "" }
func failed(s tlsprovider.Status) bool { return s.Problem != "" }

// A short back-off would be no test of ours: what is repeated goes through Retry.
func TestConformance(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	issuertest.Run(t, func(t *testing.T) issuertest.Harness {
		base := t.TempDir()
		var mu sync.Mutex
		open := map[string]*acme.Issuer{}
		var foreign []string
		return issuertest.Harness{
			Open: func(deployment string) (tlsprovider.Issuer, error) {
				issuer, err := w.open(filepath.Join(base, deployment), acme.Options{})
				mu.Lock()
				defer mu.Unlock()
				open[deployment] = issuer
				return issuer, err
			},
			Issue: func(deployment string, host provider.Host) error {
				w.Resolve(host.String(), true)
				acme.Retry(open[deployment], host)
				return nil
			},
			Fail: func(_ string, host provider.Host) error {
				w.Resolve(host.String(), false)
				return nil
			},
			Away: func() func() {
				down := func(rw http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }
				w.front.fault.Store(&down)
				return func() {
					w.front.fault.Store(nil)
				}
			},
			WriteForeign: func(deployment string, host provider.Host) error {
				for name, text := range map[string]string{
					"README": "notes", host.String() + ".pem": "a certificate", host.String() + ".json.bak": "{}", "no-host.json": "{}",
				} {
					path := filepath.Join(base, deployment, "hosts", name)
					foreign = append(foreign, path)
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						return err
					}
				}
				return nil
			},
			ReadForeign: func() ([]byte, error) {
				var all []byte
				for _, path := range foreign {
					text, err := os.ReadFile(path)
					if err != nil {
						return nil, err
					}
					all = append(all, text...)
				}
				return all, nil
			},
		}
	})
}

func TestIssue(t *testing.T) {
	w := newWorld(t, 90*24*time.Hour)
	for _, challenge := range []acme.Challenge{acme.HTTP01, acme.TLSALPN01} {
		t.Run(string(challenge), func(t *testing.T) {
			name := string(challenge) + ".example.org"
			issuer := w.issuer(t, t.TempDir(), acme.Options{Challenges: []acme.Challenge{challenge}})
			order(t, issuer, name, "ws-u1")
			status := until(t, issuer, name, issued)
			require.NoError(t, status.Certificate.Validate())

			// A client with the authority's root accepts it.
			client, err := tls.Dial("tcp", w.TLS, &tls.Config{ServerName: name, RootCAs: w.Roots(t)})
			require.NoError(t, err)
			require.NoError(t, client.Close())
			_, err = tls.Dial("tcp", w.TLS, &tls.Config{ServerName: name, RootCAs: w.Roots(t), NextProtos: []string{acme.ALPN}})
			require.Error(t, err, "there is no challenge any more")
		})
	}
}

// No server name orders anything.
func TestRandomServerNames(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	issuer := w.issuer(t, t.TempDir(), acme.Options{})
	order(t, issuer, "a.example.org", "ws-u1")
	until(t, issuer, "a.example.org", issued)
	before := w.Orders()
	require.Equal(t, 1, before)

	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for n := range 2500 {
				conn, err := tls.Dial("tcp", w.TLS, &tls.Config{ServerName: fmt.Sprintf("h%d-%d.a.example.org", worker, n), InsecureSkipVerify: true})
				if err == nil {
					conn.Close()
					t.Error("a certificate for a name that was not ordered")
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, before, w.Orders())
	orders, err := issuer.Orders(t.Context())
	require.NoError(t, err)
	require.Len(t, orders, 1)
}

// Who adds and removes a domain again and again gets the certificate that is there.
func TestOrderAndCancel(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	dir := t.TempDir()
	issuer, err := w.open(dir, acme.Options{})
	require.NoError(t, err)
	name := host(t, "a.example.org")
	order(t, issuer, "a.example.org", "ws-u1")
	first := until(t, issuer, "a.example.org", issued)
	for n := range 1000 {
		if n%250 == 0 { // a restart makes no difference
			require.NoError(t, issuer.Close())
			issuer, err = w.open(dir, acme.Options{})
			require.NoError(t, err)
		}
		require.NoError(t, issuer.Cancel(t.Context(), name))
		require.Equal(t, first, order(t, issuer, "a.example.org", fmt.Sprintf("ws-u%d", n%3)))
	}
	require.NoError(t, issuer.Close())
	require.Equal(t, 1, w.Orders())
}

func TestRenewal(t *testing.T) {
	w := newWorld(t, 12*time.Second) // and renewed after 8
	issuer := w.issuer(t, t.TempDir(), acme.Options{})
	order(t, issuer, "a.example.org", "ws-u1")
	first := until(t, issuer, "a.example.org", issued)
	told := make(chan provider.Host, 100)
	ended := make(chan error, 1)
	go func() { ended <- issuer.Watch(t.Context(), func(h provider.Host) { told <- h }) }()
	second := until(t, issuer, "a.example.org", func(s tlsprovider.Status) bool { return issued(s) && s != first })
	require.Equal(t, "a.example.org", (<-told).String())

	// A third one would be beyond the host's quota of a day.
	third := until(t, issuer, "a.example.org", failed)
	require.Contains(t, third.Problem, "for today")
	require.NotEqual(t, first, second)
	require.Equal(t, 2, w.Orders())
}

// What the authority wants renewed early, because it has revoked it or will, is.
func TestRevoked(t *testing.T) {
	w := newWorld(t, 90*24*time.Hour)
	issuer := w.issuer(t, t.TempDir(), acme.Options{})
	order(t, issuer, "a.example.org", "ws-u1")
	first := until(t, issuer, "a.example.org", issued)
	require.NoError(t, acme.Revoke(t.Context(), issuer, host(t, "a.example.org")))
	acme.AskNow(issuer, host(t, "a.example.org"))
	until(t, issuer, "a.example.org", func(s tlsprovider.Status) bool { return issued(s) && s != first })
}

func TestProblems(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	// refuse answers requests for new orders.
	refuse := func(status int, kind, detail string, headers ...string) {
		fault := func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/order-plz" {
				return false
			}
			for i := 0; i+1 < len(headers); i += 2 {
				rw.Header().Set(headers[i], headers[i+1])
			}
			rw.Header().Set("Content-Type", "application/problem+json")
			rw.WriteHeader(status)
			fmt.Fprintf(rw, `{"type":"urn:ietf:params:acme:error:%s","detail":%q,"status":%d}`, kind, detail, status)
			return true
		}
		w.front.fault.Store(&fault)
	}
	for _, test := range []struct {
		name  string
		begin func()
		want  []string
	}{
		{"not in dns", func() { w.Resolve("not-in-dns.example.org", false) }, []string{"not-in-dns.example.org: its DNS records have to point here", "(it says: "}},
		{"rate limited", func() {
			refuse(http.StatusTooManyRequests, "rateLimited", "too many certificates", "Retry-After", "7200")
		}, []string{"limit", "too many certificates", time.Now().Add(2 * time.Hour).UTC().Format("2006-01-02 15:")}},
		{"caa", func() { refuse(http.StatusForbidden, "caa", "CAA says\nno") }, []string{"CAA record of caa.example.org", "CAA says no"}},
		{"rejected", func() { refuse(http.StatusBadRequest, "rejectedIdentifier", "policy") }, []string{"gives no certificates to rejected.example.org"}},
		{"internal", func() { refuse(http.StatusInternalServerError, "serverInternal", "sorry") }, []string{"has refused", "sorry"}},
		{"garbage", func() {
			garbage := func(rw http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(rw, "<html>"); return true }
			w.front.fault.Store(&garbage)
		}, []string{"no certificate could be obtained"}},
		{"down", func() {
			down := func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
			w.front.fault.Store(&down)
		}, []string{"no certificate could be obtained", "next attempt"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer w.front.fault.Store(nil)
			issuer := w.issuer(t, t.TempDir(), acme.Options{})
			order(t, issuer, "good.example.org", "ws-u1")
			good := until(t, issuer, "good.example.org", issued)

			name := strings.ReplaceAll(test.name, " ", "-") + ".example.org"
			test.begin()
			order(t, issuer, name, "ws-u1")
			status := until(t, issuer, name, failed)
			for _, want := range test.want {
				require.Contains(t, status.Problem, want)
			}
			require.NotContains(t, status.Problem, "\n")
			require.Equal(t, good, order(t, issuer, "good.example.org", "ws-u1"), "another domain's certificate stays")

			// What was wrong ends, and the time for the next attempt comes.
			w.front.fault.Store(nil)
			w.Resolve(name, true)
			acme.Retry(issuer, host(t, name))
			until(t, issuer, name, issued)
		})
	}
}

// An order that the authority gives up after it was authorised is a failure like others.
func TestOrderBecomesInvalid(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	issuer := w.issuer(t, t.TempDir(), acme.Options{})
	fault := func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/finalize-order/") {
			return false
		}
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprint(rw, `{"status":"invalid","error":{"type":"urn:ietf:params:acme:error:unauthorized","detail":"the order was revoked"}}`)
		return true
	}
	w.front.fault.Store(&fault)
	order(t, issuer, "a.example.org", "ws-u1")
	require.Contains(t, until(t, issuer, "a.example.org", failed).Problem, "the order was revoked")
	w.front.fault.Store(nil)
	acme.Retry(issuer, host(t, "a.example.org"))
	until(t, issuer, "a.example.org", issued)
}

// Files that were torn or edited cost their own host's certificate at most.
func TestDamagedFiles(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	dir := t.TempDir()
	issuer, err := w.open(dir, acme.Options{})
	require.NoError(t, err)
	order(t, issuer, "a.example.org", "ws-u1")
	order(t, issuer, "b.example.org", "ws-u1")
	until(t, issuer, "a.example.org", issued)
	good := until(t, issuer, "b.example.org", issued)
	require.NoError(t, issuer.Close())
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	path := filepath.Join(dir, "hosts", "a.example.org.json")
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, content := range map[string]string{
		"empty": "", "torn": string(whole[:len(whole)/2]), "null": "null", "zeros": strings.Repeat("\x00", 4096),
		"another host": strings.Replace(string(whole), "a.example.org", "b.example.org", 1),
		"another key":  strings.Replace(string(whole), "BEGIN PRIVATE", "BEGIN PUBLIC", 1),
		"huge":         `{"host":"` + strings.Repeat("a", 1<<20),
		"future":       strings.Replace(string(whole), `"at": "20`, `"at": "29`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "account.json"), []byte(content), 0o600))
			issuer, err := w.open(dir, acme.Options{HostOrders: 100})
			require.NoError(t, err)
			defer func() { require.NoError(t, issuer.Close()) }()
			require.Equal(t, good, order(t, issuer, "b.example.org", "ws-u1"))
			order(t, issuer, "a.example.org", "ws-u1")
			until(t, issuer, "a.example.org", issued)
		})
	}
}

func TestOneAtATime(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	dir := t.TempDir()
	w.issuer(t, dir, acme.Options{})
	_, err := w.open(dir, acme.Options{})
	require.ErrorContains(t, err, "in use")
}

// A successor serves what there is while its predecessor works on the directory, and takes over when that is closed.
func TestStandby(t *testing.T) {
	w := newWorld(t, 24*time.Hour)
	dir := t.TempDir()
	first, err := w.open(dir, acme.Options{})
	require.NoError(t, err)
	before := until(t, first, "a.example.org", issued)
	second := w.issuer(t, dir, acme.Options{Standby: true})
	require.Equal(t, before, order(t, second, "a.example.org", "ws-u1"))
	hello := &tls.ClientHelloInfo{ServerName: "a.example.org"}
	_, err = second.GetCertificate(hello)
	require.NoError(t, err)
	_, err = second.Order(t.Context(), tlsprovider.Order{Host: host(t, "b.example.org"), Owner: "ws-u1"})
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.True(t, errdefs.IsUnavailable(second.Cancel(t.Context(), host(t, "a.example.org"))))
	third, err := w.open(dir, acme.Options{Standby: true})
	require.NoError(t, err)
	require.NoError(t, third.Close(), "it may be closed before it has taken over")

	until(t, first, "b.example.org", issued) // of which the second has not heard
	require.NoError(t, first.Close())
	hello.ServerName = "b.example.org"
	require.Eventually(t, func() bool {
		_, err := second.GetCertificate(hello)
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	until(t, second, "c.example.org", issued)
}

func roots(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(text))
	return pool
}
