package provider_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

const (
	chain = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n"
	key   = "-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\n"
)

func TestCertificateValidate(t *testing.T) {
	h := host(t, "a.example.org")
	for what, c := range map[string]provider.Certificate{
		"secret":          {Host: h, Secret: "a-1.example.org"},
		"resolver":        {Host: h, Resolver: "Lets_Encrypt-2"},
		"chain":           {Host: h, Chain: chain, Key: key},
		"two in a chain":  {Host: h, Chain: chain + chain, Key: key},
		"CR LF line ends": {Host: h, Chain: strings.ReplaceAll(chain, "\n", "\r\n"), Key: key},
	} {
		require.NoErrorf(t, c.Validate(), "%s", what)
	}
	for what, c := range map[string]provider.Certificate{
		"no host":                {Secret: "a"},
		"nothing":                {Host: h},
		"secret and resolver":    {Host: h, Secret: "a", Resolver: "le"},
		"resolver and chain":     {Host: h, Resolver: "le", Chain: chain, Key: key},
		"secret and key":         {Host: h, Secret: "a", Key: key},
		"chain without key":      {Host: h, Chain: chain},
		"key without chain":      {Host: h, Key: key},
		"path for a chain":       {Host: h, Chain: "/etc/ssl/a.pem", Key: key},
		"path for a key":         {Host: h, Chain: chain, Key: "/etc/ssl/a.key"},
		"template":               {Host: h, Chain: chain + "{{ . }}", Key: key},
		"comma":                  {Host: h, Chain: chain + ",", Key: key},
		"NUL":                    {Host: h, Chain: chain, Key: key + "\x00"},
		"huge":                   {Host: h, Chain: strings.Repeat(chain, 2000), Key: key},
		"secret elsewhere":       {Host: h, Secret: "other/a"},
		"secret in upper case":   {Host: h, Secret: "A"},
		"secret with two dots":   {Host: h, Secret: "a..b"},
		"long secret":            {Host: h, Secret: strings.Repeat("a.", 126) + "ab"},
		"resolver of a provider": {Host: h, Resolver: "le@file"},
		"resolver with a dot":    {Host: h, Resolver: "a.b"},
		"template for resolver":  {Host: h, Resolver: "{{.}}"},
	} {
		err := c.Validate()
		require.Truef(t, errdefs.IsInvalidArgument(err), "%s: %v", what, err)
		require.NotContains(t, err.Error(), "MIIsecret", what)
	}
}

func TestRouteCertificates(t *testing.T) {
	r := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	a, b := provider.Certificate{Host: r.Hosts[0], Resolver: "le"}, provider.Certificate{Host: r.Hosts[1], Secret: "b"}
	r.Certificates = []provider.Certificate{a, b}
	require.NoError(t, r.Validate())
	require.Equal(t, a, r.Certificate(r.Hosts[0]))
	require.Equal(t, b, r.Certificate(r.Hosts[1]))
	require.Zero(t, r.Certificate(host(t, "c.example.org")))

	for what, change := range map[string]func(*provider.Route){
		"unsorted": func(r *provider.Route) { r.Certificates = []provider.Certificate{b, a} },
		"twice":    func(r *provider.Route) { r.Certificates = []provider.Certificate{a, a} },
		"foreign host": func(r *provider.Route) {
			r.Certificates = []provider.Certificate{{Host: host(t, "c.example.org"), Secret: "c"}}
		},
		"invalid":     func(r *provider.Route) { r.Certificates = []provider.Certificate{{Host: r.Hosts[0]}} },
		"passthrough": func(r *provider.Route) { r.Backend = "tcp://198.18.0.1:443" },
	} {
		other := r
		change(&other)
		require.Truef(t, errdefs.IsInvalidArgument(other.Validate()), "%s", what)
		require.False(t, r.Equal(other), what)
	}
	other := r
	other.Certificates = []provider.Certificate{a}
	require.False(t, r.Equal(other))
	require.True(t, r.Equal(r))
}

// TestPrivateKeyIsNotShown: whatever prints a route, prints no key.
func TestPrivateKeyIsNotShown(t *testing.T) {
	r := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	r.Certificates = []provider.Certificate{{Host: r.Hosts[0], Chain: chain, Key: key}}
	for _, value := range []any{r, &r, r.Certificates, r.Certificates[0], &r.Certificates[0], r.Certificates[0].Key, map[string]any{"r": r}} {
		shown := ""
		for _, verb := range "vsqxXdt" {
			for _, flags := range []string{"", "+", "#", " ", "10", ".3"} {
				shown += fmt.Sprintf("%"+flags+string(verb), value)
			}
		}
		text, err := json.Marshal(value)
		require.NoError(t, err)
		shown += string(text)
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", value)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", value)
		shown += out.String() + fmt.Sprint(fmt.Errorf("%v", value))
		for _, secret := range []string{"MIIsecret", fmt.Sprintf("%x", "MIIsecret"), fmt.Sprintf("%X", "MIIsecret"), "% x"} {
			require.NotContains(t, shown, secret)
		}
		require.Contains(t, shown, "(private key)")
	}
	require.Equal(t, key, string(r.Certificates[0].Key))
}
