package integration_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// authorities are those who issue the certificates of what has one: each is trusted for nothing else, so that who trusts one of
// them alone sees whose certificate is served.
type authorities struct{ platform, shop, own *testbed.CA }

// Visitors who trust the right authority, and nobody else, get in and boot webspaces: at a default domain with the platform's
// certificate, at a custom domain with one of its own, and at a webspace that takes TLS itself with that which is in the
// container. They are curl, and come through a real Traefik.
func TestTLS(t *testing.T) {
	e := testbed.LXD(t)
	ca := authorities{testbed.NewCA(t, "platform"), testbed.NewCA(t, "shop"), testbed.NewCA(t, "own")}
	e.ImportImage(t, "secure", testbed.Secure(t, ca.own.Issue("bob.ws.example.test")))
	proofs := testbed.Proofs(t, map[string]string{"_webspaced.shop.example.net.": "webspace:id:1000"})

	var all sync.WaitGroup
	defer all.Wait()
	for _, provider := range providers {
		all.Go(func() {
			t.Run(provider, func(t *testing.T) { servesTLS(t, e, provider, ca, proofs) })
		})
	}
}

func servesTLS(t *testing.T, e *testbed.Engine, provider string, ca authorities, proofs string) {
	prefix := e.Prefix + provider + "-tls-"
	env := []string{"WSD_WEBSPACES_DOMAINS_RESOLVER=" + proofs}
	if provider != "kubernetes" { // where cert-manager is asked
		env = append(env, "WSD_TLS_PROVIDER=static", fmt.Sprintf("WSD_TLS_STATIC_CERTIFICATES=[%s, %s]",
			files(t, ca.platform, "*.ws.example.test"), files(t, ca.shop, "shop.example.net")),
			"WSD_GATEWAY_TLS_LISTEN_ADDRESS="+testbed.Addresses(t, 1)[0])
	}
	edge := startEdge(t, e, prefix, provider, env...)
	if c := edge.cluster; c != nil {
		chain, key := testbed.EncodePEM(t, ca.platform.Issue("*.ws.example.test"))
		c.TLSSecret(t, c.namespace, "webspaces-tls", chain, key)
		c.CertManager(t, "letsencrypt", ca.shop)
	}
	alice, bob := prefix+"u1000", prefix+"u1001"
	t.Cleanup(func() { e.Delete(t, alice, bob) })
	edge.create(t, "alice", e.Image)
	require.Equal(t, http.StatusCreated, edge.do(t, "alice", "POST", "/webspace/self/domains/shop.example.net", nil, nil))
	edge.create(t, "bob", "secure")
	require.Equal(t, http.StatusOK, edge.do(t, "bob", "PATCH", "/webspace/self/config", map[string]any{"sniPassthrough": true, "httpPort": 443}, nil))

	for _, site := range []struct {
		host, user, instance string
		ca                   *testbed.CA
	}{
		{"shop.example.net", "alice", alice, ca.shop},
		{"alice.ws.example.test", "alice", alice, ca.platform},
		{"bob.ws.example.test", "bob", bob, ca.own},
	} {
		hello := "hello from " + site.instance + "\n"
		require.Eventually(t, func() bool {
			page, _ := edge.proxy.Curl(t, site.ca, site.host, "/index.html")
			return page == hello
		}, time.Minute, 200*time.Millisecond, site.host)
		require.True(t, edge.running(t, site.user))
		for _, other := range []*testbed.CA{ca.platform, ca.shop, ca.own} {
			page, err := edge.proxy.Curl(t, other, site.host, "/index.html")
			if other == site.ca {
				require.NoError(t, err, site.host)
				require.Equal(t, hello, page)
				continue
			}
			var exit *exec.ExitError
			require.True(t, errors.As(err, &exit), "%s: %v", site.host, err)
			require.Equal(t, 60, exit.ExitCode(), "%s has a certificate that is not trusted: %s", site.host, exit.Stderr)
		}
	}
}

// files writes a certificate for a host and its key to files, and returns them as tls.static.certificates has them.
func files(t *testing.T, ca *testbed.CA, host string) string {
	t.Helper()
	chain, key := testbed.EncodePEM(t, ca.Issue(host))
	cert, private := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(cert, []byte(chain), 0o600))
	require.NoError(t, os.WriteFile(private, []byte(key), 0o600))
	return fmt.Sprintf("{cert_file: %q, key_file: %q}", cert, private)
}
