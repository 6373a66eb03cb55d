package traefiktest

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

func (s *suite) route(name, backend string, hosts ...string) provider.Route {
	s.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(s, err)
		r.Hosts = append(r.Hosts, host)
	}
	slices.SortFunc(r.Hosts, provider.Host.Compare)
	require.NoError(s, r.Validate())
	return r
}

// backend answers with its name and the host that it was asked for.
func (s *suite) backend(name string) string {
	server := s.unstarted(name)
	server.Start()
	return server.URL
}

func (s *suite) unstarted(name string) *httptest.Server {
	server := httptest.NewUnstartedServer(named(name))
	if s.Backends != "" {
		l, err := net.Listen("tcp", net.JoinHostPort(s.Backends, "0"))
		require.NoError(s, err)
		_ = server.Listener.Close()
		server.Listener = l
	}
	s.Cleanup(server.Close)
	return server
}

// tlsBackend is a backend that takes TLS itself.
func (s *suite) tlsBackend(name string, certificate tls.Certificate) string {
	server := s.unstarted(name)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	return "tcp://" + server.Listener.Addr().String()
}

func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name, " ", r.Host) }
}

// answers requires that a host is answered like this in the end.
func (s *suite) answers(host, want string) {
	s.Helper()
	s.eventually(host, func() (string, string) { return s.get(host), want })
}

// eventually asks until the answer is the one that is wanted.
func (s *suite) eventually(what string, ask func() (have, want string)) {
	s.Helper()
	deadline := time.After(30 * time.Second)
	for {
		have, want := ask()
		if have == want {
			return
		}
		select {
		case <-deadline:
			s.Fatalf("%s is answered by %q, not by %q", what, have, want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *suite) get(host string) string { return s.getPath(host, "/") }

func (s *suite) getPath(host, path string) string {
	request, err := http.NewRequestWithContext(s.Context(), http.MethodGet, "http://"+s.traefik.Web+path, nil)
	if err != nil {
		return fmt.Sprint("error: ", err)
	}
	request.Host = host
	response, err := s.visitor.Do(request)
	if err != nil {
		return fmt.Sprint("error: ", err)
	}
	return read(response)
}

// read returns the status of a response or, if that is 200, the body.
func read(response *http.Response) string {
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return fmt.Sprint("error: ", err)
	case response.StatusCode != http.StatusOK:
		return response.Status
	}
	return string(body)
}
