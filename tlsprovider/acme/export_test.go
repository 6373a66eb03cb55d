package acme

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/netsoc/webspaced/provider"
)

// Retry has the time of the next attempt come.
func Retry(i *Issuer, name provider.Host) {
	_ = i.update(name, func(r *record) { r.Next = time.Time{} })
	i.wakeUp()
}

// AskNow has the time come to ask whether the certificate is to be renewed early.
func AskNow(i *Issuer, name provider.Host) {
	i.mu.Lock()
	i.hosts[name].asked = time.Time{}
	i.mu.Unlock()
	i.wakeUp()
}

// Revoke revokes a host's certificate.
func Revoke(ctx context.Context, i *Issuer, name provider.Host) error {
	c := i.authority.(*client)
	i.mu.Lock()
	leaf := i.hosts[name].served.Leaf
	i.mu.Unlock()
	account, err := c.register(ctx)
	if err != nil {
		return err
	}
	return c.acme.RevokeCertificate(ctx, account, leaf, account.PrivateKey, 1)
}

// Authority is a stand-in for tests of the schedule.
type Authority struct {
	Obtain func(provider.Host) (chain, key string, err error)
}

func (a Authority) obtain(_ context.Context, host provider.Host, _ int, _ *x509.Certificate) (chain, key string, ordered bool, err error) {
	chain, key, err = a.Obtain(host)
	return chain, key, true, err
}

func (Authority) advice(context.Context, *x509.Certificate) (time.Time, error) {
	return time.Time{}, nil
}

// NewWith is New with another authority.
func NewWith(dir string, o Options, a Authority) (*Issuer, error) {
	o = o.withDefaults()
	store, err := openStore(dir, o)
	if err != nil {
		return nil, err
	}
	return start(o, store, a, newAnswers())
}

// Files returns the files of hosts.
func Files(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(filepath.Join(dir, "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
