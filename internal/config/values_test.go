package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/internal/config"
)

func TestSecretHidesItself(t *testing.T) {
	const text = "CANARY-inline"
	s := config.NewSecret(text)
	require.Equal(t, text, s.Reveal())
	holder := struct {
		Exported   config.Secret
		unexported config.Secret
		Pointer    *config.Secret
		Any        any
		Map        map[string]config.Secret
	}{s, s, &s, s, map[string]config.Secret{"a": s}}

	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%10.3s", "%!"} {
		for _, value := range []any{s, &s, holder, &holder, []config.Secret{s}} {
			requireNoSecret(t, fmt.Sprintf(verb, value))
		}
	}
	require.NotContains(t, fmt.Sprintf("%x", s), fmt.Sprintf("%x", text))
	for _, value := range []any{s, &s, holder} {
		out, err := json.Marshal(value)
		require.NoError(t, err)
		requireNoSecret(t, string(out))
		require.Contains(t, string(out), "(hidden)")
		out, err = yaml.Marshal(value)
		require.NoError(t, err)
		requireNoSecret(t, string(out))
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "secret", s, "pointer", &s, "holder", holder)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "secret", s, "pointer", &s, "holder", holder)
	requireNoSecret(t, log.String())

	require.Empty(t, config.Secret{}.String(), "no secret is not shown as one")
	require.True(t, config.NewSecret("").IsZero())
}

func TestDomain(t *testing.T) {
	for text, want := range map[string]string{
		"localhost": "localhost", "Example.Org.": "example.org", "a-b.c": "a-b.c", "": "", "XN--BCHER-KVA.example": "xn--bcher-kva.example",
	} {
		var d config.Domain
		require.NoError(t, d.UnmarshalText([]byte(text)), text)
		require.EqualValues(t, want, d)
	}
	for _, text := range []string{".", "..", "a..b", "-a", "a_b", "*.example.org", "127.0.0.1", "12", "bücher.example", "\u212Aey", "a b", "a/b", "example.org:80", "::1"} {
		var d config.Domain
		require.Error(t, d.UnmarshalText([]byte(text)), text)
	}
}

func TestURL(t *testing.T) {
	for _, text := range []string{"http://webspaced", "https://iam.example.org/v1", "http://[::1]:8080", "http://127.0.0.1:80/"} {
		var u config.URL
		require.NoError(t, u.UnmarshalText([]byte(text)), text)
		require.Equal(t, text, u.String())
	}
	for _, text := range []string{"example.org", "//example.org", "http://", "http:///x", "http://a:b@c", "http://a?b", "http://a#b", "http://a:99999", "http://a b", "unix:///x", "http://a:x"} {
		var u config.URL
		require.Error(t, u.UnmarshalText([]byte(text)), text)
	}
}

func TestOrigin(t *testing.T) {
	for text, want := range map[string]string{
		"http://webspaced": "http://webspaced:80", "https://a.example/v1": "https://a.example:443", "http://[::1]:8081/": "http://[::1]:8081",
	} {
		var u config.URL
		require.NoError(t, u.UnmarshalText([]byte(text)))
		require.Equal(t, want, u.Origin())
	}
}

func TestAddress(t *testing.T) {
	for _, text := range []string{":80", "127.0.0.1:0", "[::1]:8080", "localhost:80", ""} {
		var a config.Address
		require.NoError(t, a.UnmarshalText([]byte(text)), text)
	}
	for _, text := range []string{"80", "localhost", ":http", ":65536", "a b:80", "::1:80", "127.0.0.1:"} {
		var a config.Address
		require.Error(t, a.UnmarshalText([]byte(text)), text)
	}
}
