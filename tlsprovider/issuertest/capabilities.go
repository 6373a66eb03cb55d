package issuertest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

func (s *suite) watch() {
	issuer := s.open("one")
	watcher, ok := issuer.(tlsprovider.Watcher)
	if !ok {
		s.Skip("not a Watcher")
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	changed := make(chan provider.Host, 1000)
	ended := make(chan error, 1)
	go func() {
		ended <- watcher.Watch(ctx, func(host provider.Host) {
			select {
			case changed <- host:
			default: // told often enough
			}
		})
	}()
	// What changes before Watch has begun to watch is not told: there is a next one.
	hosts := map[provider.Host]bool{}
	told := s.Issue == nil
	for i := 0; i < 3 && !told; i++ {
		order := s.newOrder(fmt.Sprintf("h%d.example.org", i), "ws-u1")
		hosts[order.Host] = true
		s.order(issuer, order)
		require.NoError(s, s.Issue("one", order.Host))
		patience := time.After(soon / 6)
		for waiting := true; waiting && !told; {
			select {
			case host := <-changed:
				require.Contains(s, hosts, host, "a host that was never ordered is told")
				status := s.order(issuer, order)
				told = host == order.Host && status.Certificate != (provider.Certificate{}) && status.Problem == ""
			case err := <-ended:
				require.FailNow(s, "Watch has ended before its context", "%v", err)
			case <-patience:
				waiting = false
			}
		}
	}
	require.True(s, told, "certificates have come, and nobody was told")
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(s, err, context.Canceled)
	case <-time.After(soon):
		require.FailNow(s, "Watch does not end with its context")
	}
}

func (s *suite) hold() {
	issuer := s.open("one")
	holder, ok := issuer.(tlsprovider.Holder)
	if !ok {
		s.Skip("not a Holder")
	}
	refused := func(name string) {
		s.Helper()
		certificate, err := holder.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		require.Errorf(s, err, "server name %.300q", name)
		require.Nil(s, certificate)
	}
	a, other := s.newOrder("a.example.org", "ws-u1"), s.newOrder("b.example.org", "ws-u1")
	refused(a.Host.String())
	s.order(issuer, a)
	s.order(issuer, other)
	s.issued(issuer, "one", a)
	for _, name := range []string{"a.example.org", "A.Example.ORG"} {
		certificate, err := holder.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		require.NoError(s, err)
		require.NotNil(s, certificate.PrivateKey)
		require.NotNil(s, certificate.Leaf, "the leaf is parsed once, not in each handshake")
		require.NoError(s, certificate.Leaf.VerifyHostname("a.example.org"))
	}
	for _, name := range []string{
		"", ".", "example.org", "b.a.example.org", "a.example.org.evil.example", "*.example.org", "a.example.org\x00", "198.18.0.1", "::1",
		"../a.example.org", strings.Repeat("a.", 127) + "org", strings.Repeat("x", 1<<16), "\xff\xfe",
	} {
		refused(name)
	}
	for i := range 1000 {
		refused(fmt.Sprintf("h%d.example.com", i))
	}
	s.stands(issuer, a, other)
	s.cancel(issuer, a.Host)
	refused(a.Host.String())
}

func (s *suite) challenge() {
	issuer := s.open("one")
	challenger, ok := issuer.(tlsprovider.Challenger)
	if !ok {
		s.Skip("not a Challenger")
	}
	a := s.newOrder("a.example.org", "ws-u1")
	check := func() {
		s.Helper()
		for _, target := range []string{
			"http://%s/", "http://%s/.well-known/acme-challenge/", "http://%s/.well-known/acme-challenge/guess",
			"http://%s/.well-known/acme-challenge/../../etc/passwd", "http://%s/.well-known/acme-challenge/a/b",
			"http://%s/.well-known/acme-challenge/" + strings.Repeat("a", 1<<16),
		} {
			for _, host := range []string{"a.example.org", "A.EXAMPLE.ORG:80", "nobody.example.org", "198.18.0.1", "[::1]:80", "_"} {
				for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodConnect} {
					w := httptest.NewRecorder()
					r := httptest.NewRequest(method, fmt.Sprintf(target, "placeholder.example"), http.NoBody)
					r.Host = host
					require.Falsef(s, challenger.HandleChallenge(w, r), "%s %.100s of %s", method, target, host)
					require.Equal(s, httptest.NewRecorder(), w, "it has answered what is not its own")
				}
			}
		}
	}
	check()
	s.order(issuer, a)
	check()
	s.stands(issuer, a)
}

func (s *suite) close() {
	issuer := s.open("one")
	closer, ok := issuer.(io.Closer)
	if !ok {
		s.Skip("not a Closer")
	}
	s.order(issuer, s.newOrder("a.example.org", "ws-u1"))
	var wg sync.WaitGroup
	if watcher, ok := issuer.(tlsprovider.Watcher); ok {
		ctx, cancel := context.WithCancel(s.Context())
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = watcher.Watch(ctx, func(provider.Host) {}) })
	}
	for range 3 {
		wg.Go(func() {
			if err := closer.Close(); err != nil {
				s.Error(err)
			}
		})
	}
	require.NoError(s, closer.Close())
}
