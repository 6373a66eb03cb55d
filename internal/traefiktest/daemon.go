package traefiktest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/internal/testbed"
)

// Between starts what is between a daemon with the provider "file", "redis" or "http" and a Traefik. It returns what the
// daemon's configuration says of it in the section "traefik", and the flags that have Traefik follow.
func Between(t testing.TB, provider string) (config string, flags []string) {
	t.Helper()
	switch provider {
	case "file":
		dir := t.TempDir()
		DefaultCertificate(t, dir)
		return fmt.Sprintf("file: {directory: %q}", dir), []string{"--providers.file.directory=" + dir}
	case "redis":
		redis := testbed.Redis(t)
		return fmt.Sprintf("redis: {addr: %q}", redis.Address),
			[]string{"--providers.redis.endpoints=" + redis.Address, DefaultCertificate(t, t.TempDir())}
	case "http":
		address := testbed.Addresses(t, 1)[0]
		return fmt.Sprintf("http: {listen_address: %q}", address),
			[]string{"--providers.http.endpoint=http://" + address + "/", "--providers.http.pollinterval=100ms", DefaultCertificate(t, t.TempDir())}
	}
	t.Fatalf("nothing is known to be between a daemon and Traefik with provider %q", provider)
	return "", nil
}

// DefaultCertificate gives a Traefik that follows a directory a default certificate, and returns the flag for one that does not.
// Without one, Traefik makes itself an RSA key whenever it reads a change: that takes a tenth of a second, and at times a whole one.
func DefaultCertificate(t testing.TB, dir string) (flag string) {
	t.Helper()
	chain, key := testbed.EncodePEM(t, testbed.NewCA(t, "default").Issue("default.example.test"))
	file := filepath.Join(dir, "default.yml")
	text, err := yaml.Marshal(map[string]any{"tls": map[string]any{"stores": map[string]any{"default": map[string]any{
		"defaultCertificate": map[string]string{"certFile": chain, "keyFile": key},
	}}}})
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return "--providers.file.filename=" + file
}
