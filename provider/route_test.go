package provider_test

import (
	"net/url"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

func TestRouteValidate(t *testing.T) {
	good := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	require.NoError(t, good.Validate())

	for _, name := range []string{"", "WS-U1", "ws_u1", "ws.u1", "-a", "a-", "../a", "a/b", "a b", "ws-u1\n", "é"} {
		r := good
		r.Name = name
		require.Truef(t, errdefs.IsInvalidArgument(r.Validate()), "name %q", name)
	}
	for what, hosts := range map[string][]provider.Host{
		"none":     nil,
		"zero":     {{}},
		"unsorted": {host(t, "b.example.org"), host(t, "a.example.org")},
		"twice":    {host(t, "a.example.org"), host(t, "A.example.org.")},
	} {
		r := good
		r.Hosts = hosts
		require.Truef(t, errdefs.IsInvalidArgument(r.Validate()), "hosts: %s", what)
	}
	for _, backend := range goodBackends {
		r := good
		r.Backend = backend
		require.NoError(t, r.Validate())
	}
	for _, backend := range badBackends {
		r := good
		r.Backend = backend
		require.Truef(t, errdefs.IsInvalidArgument(r.Validate()), "backend %q", backend)
	}
}

var goodBackends = []string{
	"http://198.18.0.1:80", "http://198.18.0.1:65535", "https://198.18.0.1:443", "tcp://198.18.0.1:443",
	"http://[2001:db8::1]:80", "tcp://[::1]:1", "http://gateway:8081", "http://gateway.example.org:8081",
	"http://webspaced.web.svc.cluster.local:8081",
}

var badBackends = []string{
	"", "http", "http://", "http://:80", "198.18.0.1:80", "//198.18.0.1:80", "http:198.18.0.1:80",
	"http://198.18.0.1", "http://198.18.0.1:", "http://198.18.0.1:0", "http://198.18.0.1:65536", "http://198.18.0.1:080",
	"http://198.18.0.1:http", "http://198.18.0.1:-1", "http://198.18.0.1:80/", "http://198.18.0.1:80/path",
	"http://198.18.0.1:80?", "http://198.18.0.1:80?a=b", "http://198.18.0.1:80#", "http://198.18.0.1:80#a",
	"http://user@198.18.0.1:80", "http://user:secret@198.18.0.1:80", "http://@198.18.0.1:80", "HTTP://198.18.0.1:80",
	"ftp://198.18.0.1:80", "udp://198.18.0.1:80", "file:///etc/passwd", "unix:///run/socket", "h2c://198.18.0.1:80",
	"http://198.18.0.256:80", "http://198.18.1:80", "http://0xc6120001:80", "http://3323068417:80", "http://0306.022.0.1:80",
	"http://2001:db8::1:80", "http://[2001:db8::1%25eth0]:80", "http://[fe80::1%eth0]:80", "http://[::1:80",
	"http://-a:80", "http://a_b:80", "http://a..b:80", "http://*.example.org:80", "http://bücher.example:80",
	"http://a b:80", "http://a%20b:80", "http://`a`:80", "http://{{.}}:80", "http://a\n:80", " http://198.18.0.1:80",
	"http://198.18.0.1:80 ", "http://198.18.0.1:80\n", "http://198.18.0.1:80,198.18.0.2:80", "http://198.18.0.1:80|",
}

// FuzzBackend: a backend that is accepted is scheme, host and port, and nothing else.
func FuzzBackend(f *testing.F) {
	for _, s := range append(goodBackends, badBackends...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := route(t, "a", s, "a.example.org")
		if r.Validate() != nil {
			return
		}
		u, err := url.Parse(s)
		require.NoError(t, err)
		require.Contains(t, []string{"http", "https", "tcp"}, u.Scheme)
		require.Equal(t, &url.URL{Scheme: u.Scheme, Host: u.Host}, u)
		require.Equal(t, u.Scheme+"://"+u.Host, s)
		require.Regexp(t, `^([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]):[1-9][0-9]*$`, u.Host)
	})
}
