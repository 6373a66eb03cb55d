package static_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/issuertest"
	"github.com/netsoc/webspaced/tlsprovider/static"
)

// certificate returns one of these names, and its key.
func certificate(t testing.TB, life time.Duration, names ...string) (chain, key []byte) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names,
		NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(life),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	secret, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})
}

func write(t testing.TB, path string, content []byte) string {
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// pair writes a certificate of these names.
func pair(t testing.TB, life time.Duration, names ...string) static.Pair {
	dir := t.TempDir()
	chain, key := certificate(t, life, names...)
	return static.Pair{CertFile: write(t, filepath.Join(dir, "tls.crt"), chain), KeyFile: write(t, filepath.Join(dir, "tls.key"), key)}
}

const year = 365 * 24 * time.Hour

var quick = &static.Options{Poll: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}

func TestConformance(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := "*." + label + "." + label + "."
	all := pair(t, year, "*.example.org", "*.example.net", long+strings.Repeat("b", 61), long+strings.Repeat("b", 60))
	issuertest.Run(t, func(*testing.T) issuertest.Harness {
		return issuertest.Harness{
			Open:    func(string) (tlsprovider.Issuer, error) { return static.New([]static.Pair{all}, quick) },
			Forgets: true,
		}
	})
}

func order(t *testing.T, i *static.Issuer, name string) tlsprovider.Status {
	t.Helper()
	host, err := provider.ParseHost(name)
	require.NoError(t, err)
	status, err := i.Order(t.Context(), tlsprovider.Order{Host: host, Owner: "ws-u1"})
	require.NoError(t, err)
	return status
}

func open(t *testing.T, pairs ...static.Pair) *static.Issuer {
	t.Helper()
	i, err := static.New(pairs, quick)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, i.Close()) })
	return i
}

func TestWhichCovers(t *testing.T) {
	i := open(t, pair(t, year, "*.example.org"), pair(t, 2*year, "a.example.org", "example.com"), pair(t, -time.Hour, "*.old.example"),
		pair(t, 24*time.Hour, "soon.example"))
	for name, want := range map[string]struct {
		covered bool
		problem string
	}{
		"b.example.org":   {true, ""},
		"a.example.org":   {true, ""},
		"example.com":     {true, ""},
		"www.example.com": {false, "covers www.example.com"},
		"example.org":     {false, "covers example.org"},
		"a.b.example.org": {false, "covers a.b.example.org"},
		"x.old.example":   {true, "has expired on"},
		"soon.example":    {true, "expires on"},
	} {
		status := order(t, i, name)
		require.Equal(t, want.covered, status.Certificate.Chain != "", name)
		if want.problem == "" {
			require.Empty(t, status.Problem, name)
		}
		require.Contains(t, status.Problem, want.problem, name)
		if want.covered {
			require.NoError(t, status.Certificate.Validate())
		}
	}
	served, err := i.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.example.org"})
	require.NoError(t, err)
	require.Contains(t, served.Leaf.DNSNames, "a.example.org", "of two that cover it the longer one counts")
}

func TestFilesThatAreOfNoUse(t *testing.T) {
	good, other, dir := pair(t, year, "a.example.org"), pair(t, year, "b.example.org"), t.TempDir()
	text, err := os.ReadFile(good.CertFile)
	require.NoError(t, err)
	nameless := pair(t, year)
	for name, test := range map[string]struct {
		pair static.Pair
		file string
	}{
		"missing":          {static.Pair{CertFile: filepath.Join(dir, "none"), KeyFile: good.KeyFile}, "none"},
		"no key file":      {static.Pair{CertFile: good.CertFile, KeyFile: filepath.Join(dir, "none")}, "none"},
		"empty":            {static.Pair{CertFile: write(t, filepath.Join(dir, "empty"), nil), KeyFile: good.KeyFile}, "empty"},
		"torn":             {static.Pair{CertFile: write(t, filepath.Join(dir, "torn"), text[:len(text)/2]), KeyFile: good.KeyFile}, "torn"},
		"huge":             {static.Pair{CertFile: write(t, filepath.Join(dir, "huge"), make([]byte, 1<<20)), KeyFile: good.KeyFile}, "huge"},
		"exchanged":        {static.Pair{CertFile: good.KeyFile, KeyFile: good.CertFile}, good.KeyFile},
		"of another":       {static.Pair{CertFile: good.CertFile, KeyFile: other.KeyFile}, other.KeyFile},
		"a directory":      {static.Pair{CertFile: dir, KeyFile: good.KeyFile}, dir},
		"without any name": {nameless, nameless.CertFile},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := static.New([]static.Pair{good, test.pair}, quick)
			require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
			require.ErrorContains(t, err, test.file)
		})
	}
	_, err = static.New(nil, nil)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}

func TestReload(t *testing.T) {
	files := pair(t, year, "a.example.org")
	i := open(t, files)
	first := order(t, i, "a.example.org")
	told := make(chan provider.Host, 100)
	ended := make(chan error, 1)
	go func() { ended <- i.Watch(t.Context(), func(h provider.Host) { told <- h }) }()

	chain, key := certificate(t, 2*year, "a.example.org", "b.example.org")
	write(t, files.CertFile, chain[:len(chain)/2])
	require.Never(t, func() bool { return order(t, i, "a.example.org") != first }, 50*time.Millisecond, 5*time.Millisecond, "torn")
	write(t, files.CertFile, chain)
	require.Never(t, func() bool { return order(t, i, "a.example.org") != first }, 50*time.Millisecond, 5*time.Millisecond, "key of the old one")
	write(t, files.KeyFile, key)
	require.Eventually(t, func() bool { return order(t, i, "a.example.org") != first }, 10*time.Second, 5*time.Millisecond)
	require.NotEmpty(t, order(t, i, "b.example.org").Certificate)

	// A symbolic link that is exchanged, as Kubernetes mounts Secrets, and files that are gone for a while.
	again, againKey := certificate(t, 3*year, "a.example.org")
	second := order(t, i, "a.example.org")
	require.NoError(t, os.Remove(files.CertFile))
	require.NoError(t, os.Remove(files.KeyFile))
	require.Never(t, func() bool { return order(t, i, "a.example.org") != second }, 50*time.Millisecond, 5*time.Millisecond)
	dir := t.TempDir()
	require.NoError(t, os.Symlink(write(t, filepath.Join(dir, "key"), againKey), files.KeyFile))
	require.NoError(t, os.Symlink(write(t, filepath.Join(dir, "crt"), again), files.CertFile))
	select {
	case host := <-told:
		require.Contains(t, []string{"a.example.org", "b.example.org"}, host.String())
	case <-time.After(10 * time.Second):
		require.Fail(t, "nobody was told")
	}
}

func FuzzFiles(f *testing.F) {
	chain, key := certificate(f, year, "a.example.org")
	f.Add(chain, key)
	f.Add(append([]byte("comment\n"), chain...), key)
	f.Add(key, chain)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		files := static.Pair{CertFile: write(t, filepath.Join(dir, "crt"), chain), KeyFile: write(t, filepath.Join(dir, "key"), key)}
		i, err := static.New([]static.Pair{files}, quick)
		if err != nil {
			require.True(t, errdefs.IsInvalidArgument(err))
			return
		}
		defer i.Close()
		if status := order(t, i, "a.example.org"); status.Certificate.Chain != "" {
			require.NoError(t, status.Certificate.Validate())
		}
	})
}
