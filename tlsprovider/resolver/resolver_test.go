package resolver_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/issuertest"
	"github.com/netsoc/webspaced/tlsprovider/resolver"
)

func TestConformance(t *testing.T) {
	issuertest.Run(t, func(*testing.T) issuertest.Harness {
		return issuertest.Harness{
			Open:    func(string) (tlsprovider.Issuer, error) { return resolver.New("letsencrypt") },
			Forgets: true,
		}
	})
}

func TestStatus(t *testing.T) {
	issuer, err := resolver.New("letsencrypt")
	require.NoError(t, err)
	host, err := provider.ParseHost("a.example.org")
	require.NoError(t, err)
	status, err := issuer.Order(t.Context(), tlsprovider.Order{Host: host, Owner: "ws-u1"})
	require.NoError(t, err)
	require.Equal(t, tlsprovider.Status{Certificate: provider.Certificate{Host: host, Resolver: "letsencrypt"}}, status)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "a b", "a\nb", "le`", "a.b", "{{x}}"} {
		_, err := resolver.New(name)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%q: %v", name, err)
	}
}
