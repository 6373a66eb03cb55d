package proxy_test

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
)

// tlsOnly is a router of which one host takes TLS connections only.
type tlsOnly struct{ hosts }

func (r tlsOnly) Route(host string) (proxy.Target, error) {
	if host == "tls.test" {
		return proxy.Target{}, errdefs.ErrFailedPrecondition
	}
	return r.hosts.Route(host)
}

func TestGatewayRedirects(t *testing.T) {
	for name, test := range map[string]struct {
		port              int
		method, host, url string
		want              string // empty: 404
	}{
		"GET":       {443, "GET", "alice.test", "/a?b=c", "https://alice.test/a?b=c"},
		"POST":      {443, "POST", "alice.test:80", "/", "https://alice.test/"},
		"port":      {8443, "GET", "alice.test:8080", "/", "https://alice.test:8443/"},
		"TLS only":  {443, "GET", "tls.test", "/", "https://tls.test/"},
		"two //":    {443, "GET", "alice.test", "//evil.test/", "https://alice.test//evil.test/"},
		"unknown":   {443, "GET", "evil.test", "/", ""},
		"off":       {0, "GET", "tls.test", "/", ""},
		"challenge": {443, "GET", "alice.test", "/.well-known/acme-challenge/other", "https://alice.test/.well-known/acme-challenge/other"},
	} {
		t.Run(name, func(t *testing.T) {
			activator := &fakeActivator{}
			h := serve(t, tlsOnly{alice}, activator, &proxy.GatewayOptions{HTTPSPort: test.port})
			request, err := http.NewRequest(test.method, "http://"+test.host+test.url, strings.NewReader("body"))
			require.NoError(t, err)
			response, err := h.client.Do(request)
			require.NoError(t, err)
			response.Body.Close()
			if test.want == "" {
				require.Equal(t, http.StatusNotFound, response.StatusCode)
			} else {
				require.Equal(t, http.StatusPermanentRedirect, response.StatusCode)
			}
			require.Equal(t, test.want, response.Header.Get("Location"))
			require.Zero(t, activator.activations.Load())
		})
	}
	address := instance(t, func(w http.ResponseWriter, r *http.Request) {})
	h := serve(t, alice, running(address), &proxy.GatewayOptions{HTTPSPort: 443,
		TrustedProxies: []netip.Prefix{netip.PrefixFrom(loopback, 32)}})
	response, err := h.client.Get("http://alice.test/")
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode, "TLS is the proxy's business")
}

func TestGatewayChallenges(t *testing.T) {
	const path = "/.well-known/acme-challenge/"
	activator := &fakeActivator{}
	h := serve(t, alice, activator, &proxy.GatewayOptions{HTTPSPort: 443, Challenge: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path+"ours" {
			return false
		}
		_, _ = io.WriteString(w, "key of "+r.Host)
		return true
	}})
	response, err := h.client.Get("http://new.test" + path + "ours")
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, "key of new.test", string(body))
	require.Equal(t, http.StatusOK, response.StatusCode)
	response, err = h.client.Get("http://new.test" + path + "other")
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusNotFound, response.StatusCode)
	require.Zero(t, activator.activations.Load())
}
