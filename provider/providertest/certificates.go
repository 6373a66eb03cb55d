package providertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

var kinds = [...]CertificateKind{Secret, Resolver, PEM}

// certificate returns one of a kind; those of different numbers differ.
func (s *suite) certificate(kind CertificateKind, host string, number int) provider.Certificate {
	s.Helper()
	h, err := provider.ParseHost(host)
	require.NoError(s, err)
	c := provider.Certificate{Host: h}
	switch kind {
	case Secret:
		c.Secret = fmt.Sprintf("secret.%d", number)
	case Resolver:
		c.Resolver = fmt.Sprintf("Resolver_%d", number)
	case PEM:
		// Long lines, both kinds of line ends, and a chain.
		block := fmt.Sprintf("-----BEGIN CERTIFICATE-----\n%s+/%d=\r\n-----END CERTIFICATE-----\n", strings.Repeat("Ab0", 30), number)
		c.Chain = block + block
		c.Key = provider.PrivateKey(fmt.Sprintf("-----BEGIN PRIVATE KEY-----\n%d\n-----END PRIVATE KEY-----\n", number))
	}
	require.NoError(s, c.Validate())
	return c
}

func (s *suite) has(want bool, certificates ...provider.Certificate) {
	s.Helper()
	for _, c := range certificates {
		have, err := s.HasCertificate(c)
		require.NoError(s, err)
		require.Equalf(s, want, have, "%+v", c)
	}
}

func (s *suite) certificates() {
	p := s.open("one")
	for _, kind := range s.Certificates {
		// A neighbour has a certificate, too, and keeps it.
		neighbour := s.route("ws-u2", "http://198.18.0.2:80", "a.example.net")
		neighbour.Certificates = []provider.Certificate{s.certificate(kind, "a.example.net", 100)}
		s.put(p, neighbour)

		// Names of which one begins with the other, in an order that their first letters do not give.
		const first, second = "a.example", "a.example-b.org"
		a := s.route("ws-u1", "http://198.18.0.1:80", first, second, "a.example.org")
		c1, c2 := s.certificate(kind, first, 1), s.certificate(kind, second, 2)
		set := func(certificates ...provider.Certificate) {
			s.Helper()
			a.Certificates = certificates
			s.put(p, a)
			s.holds(p, a, neighbour)
			s.holds(s.open("one"), a, neighbour)
			s.has(true, certificates...)
			s.has(true, neighbour.Certificates...)
		}
		set(c1)
		s.has(false, c2)
		set(c1, c2)
		renewed := s.certificate(kind, first, 3)
		set(renewed, c2)
		s.has(false, c1)
		a.Backend = "http://gateway:8081" // it outlives the instance's run
		set(renewed, c2)
		set(c2)
		s.has(false, renewed)
		set()
		s.has(false, c2)
		if !s.HTTPOnly {
			set(c1)
			a.Backend = "tcp://198.18.0.1:443"
			set()
			s.has(false, c1)
			a.Backend = "http://198.18.0.1:80"
		}
		set(c1, c2)
		s.remove(p, "ws-u1")
		s.holds(p, neighbour)
		s.has(false, c1, c2)
		s.remove(p, "ws-u2")
		s.has(false, neighbour.Certificates...)
	}
}

func (s *suite) unsupportedCertificates() {
	p := s.open("one")
	a, other := s.route("ws-u1", "http://198.18.0.1:80", "a.example"), s.route("ws-u2", "http://198.18.0.2:80", "b.example")
	s.put(p, a)
	for _, kind := range kinds {
		if slices.Contains(s.Certificates, kind) {
			continue
		}
		bad := a
		bad.Certificates = []provider.Certificate{s.certificate(kind, "a.example", 1)}
		err := p.Apply(s.Context(), provider.Changes{Put: []provider.Route{bad, other}})
		failed, ok := errors.AsType[*provider.RouteError](err)
		require.Truef(s, ok, "%s: %T is no *RouteError: %v", kind, err, err)
		require.Equal(s, "ws-u1", failed.Route)
		require.Truef(s, errdefs.IsInvalidArgument(err), "%s: %v", kind, err)
		s.holds(p, a, other)
		s.remove(p, "ws-u2")
	}
}
