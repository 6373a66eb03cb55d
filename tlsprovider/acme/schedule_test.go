package acme_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/acme"
)

// ca is an authority without a network, for tests of the clock.
type ca struct {
	life time.Duration

	mu      sync.Mutex
	failure error
	orders  map[provider.Host][]time.Time
}

func (c *ca) obtain(host provider.Host) (chain, key string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders[host] = append(c.orders[host], time.Now())
	if c.failure != nil {
		return "", "", c.failure
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(c.orders[host]))), DNSNames: []string{host.String()},
		NotBefore: time.Now(), NotAfter: time.Now().Add(c.life),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return "", "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), err
}

func (c *ca) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
}

func (c *ca) times(host provider.Host) []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orders[host]
}

func (c *ca) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, times := range c.orders {
		n += len(times)
	}
	return n
}

func newCA(life time.Duration) *ca { return &ca{life: life, orders: map[provider.Host][]time.Time{}} }

func (c *ca) open(t *testing.T, dir string, o acme.Options) *acme.Issuer {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	issuer, err := acme.NewWith(dir, o, acme.Authority{Obtain: c.obtain})
	require.NoError(t, err)
	return issuer
}

func TestBackOff(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, name := newCA(90*24*time.Hour), host(t, "a.example.org")
		c.fail(errors.New("no"))
		issuer := c.open(t, dir, acme.Options{})
		order(t, issuer, "a.example.org", "ws-u1")
		time.Sleep(24 * time.Hour)
		times := c.times(name)
		var gaps []time.Duration
		for n := 1; n < len(times); n++ {
			gaps = append(gaps, times[n].Sub(times[n-1]).Round(time.Minute))
			if n >= 5 {
				require.GreaterOrEqual(t, times[n].Sub(times[n-5]), time.Hour, "more than 5 failures in an hour")
			}
		}
		require.Equal(t, []time.Duration{1, 2, 2, 5}, divide(gaps[:4], time.Minute))
		require.LessOrEqual(t, len(times), 15)

		// Cancelling, ordering anew and restarts win nothing.
		for range 1000 {
			require.NoError(t, issuer.Cancel(t.Context(), name))
			order(t, issuer, "a.example.org", "ws-u1")
		}
		require.NoError(t, issuer.Close())
		issuer = c.open(t, dir, acme.Options{})
		order(t, issuer, "a.example.org", "ws-u2")
		synctest.Wait()
		require.Len(t, c.times(name), len(times))

		c.fail(nil)
		time.Sleep(6 * time.Hour)
		require.Len(t, c.times(name), len(times)+1)
		require.Empty(t, order(t, issuer, "a.example.org", "ws-u2").Problem)
		require.NoError(t, issuer.Close())
	})
}

func divide(all []time.Duration, by time.Duration) (quotients []time.Duration) {
	for _, d := range all {
		quotients = append(quotients, d/by)
	}
	return quotients
}

// In a year, a certificate of 90 days is renewed each 60, and the one that was there stays until then.
func TestYear(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, name := newCA(90*24*time.Hour), host(t, "a.example.org")
		issuer := c.open(t, dir, acme.Options{})
		order(t, issuer, "a.example.org", "ws-u1")
		for day := range 365 {
			time.Sleep(24 * time.Hour)
			if day == 100 { // the authority is away for three weeks
				c.fail(errors.New("away"))
			} else if day == 121 {
				c.fail(nil)
			}
			require.NotEmpty(t, order(t, issuer, "a.example.org", "ws-u1").Certificate, "day %d", day)
		}
		good := 0
		for _, at := range c.times(name) {
			if day := time.Duration(at.Sub(c.times(name)[0])) / (24 * time.Hour); day < 100 || day > 122 {
				good++
			}
		}
		require.InDelta(t, 6, good, 1)

		// What is cancelled is renewed no more, and forgotten in the end.
		require.NoError(t, issuer.Cancel(t.Context(), name))
		before := c.total()
		time.Sleep(100 * 24 * time.Hour)
		require.Equal(t, before, c.total())
		require.NoError(t, issuer.Close())
		require.Empty(t, acme.Files(t, dir))
	})
}

func TestPaceAndBudgets(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCA(90 * 24 * time.Hour)
		issuer := c.open(t, dir, acme.Options{OwnerOrders: 20, AccountOrders: 50})
		// One owner orders and cancels 200 hosts, others one each.
		for n := range 200 {
			name := fmt.Sprintf("h%d.greedy.example", n)
			order(t, issuer, name, "ws-u1")
		}
		for n := range 40 {
			order(t, issuer, "example.org", "ws-u2")
			order(t, issuer, fmt.Sprintf("h%d.example.org", n), fmt.Sprintf("ws-u%d", 100+n))
		}
		time.Sleep(10 * time.Second)
		require.LessOrEqual(t, c.total(), 20, "10 at once and 10 in 10 s")
		time.Sleep(time.Hour)
		require.Equal(t, 50, c.total(), "of the account in 3 hours")
		time.Sleep(3 * time.Hour)
		require.Equal(t, 61, c.total(), "all the others', and 20 of the greedy one")
		require.Contains(t, order(t, issuer, "h199.greedy.example", "ws-u1").Problem+order(t, issuer, "h0.greedy.example", "ws-u1").Problem, "its owner")
		for n := range 200 {
			require.NoError(t, issuer.Cancel(t.Context(), host(t, fmt.Sprintf("h%d.greedy.example", n))))
		}
		for n := range 200 {
			order(t, issuer, fmt.Sprintf("again%d.greedy.example", n), "ws-u1")
		}
		time.Sleep(12 * time.Hour)
		require.Equal(t, 61, c.total(), "cancelling gives no budget back")
		require.NoError(t, issuer.Close())
	})
}

func TestTooManyOrders(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		issuer := newCA(time.Hour).open(t, dir, acme.Options{MaxOrders: 2})
		order(t, issuer, "a.example.org", "ws-u1")
		order(t, issuer, "b.example.org", "ws-u1")
		_, err := issuer.Order(t.Context(), tlsprovider.Order{Host: host(t, "c.example.org"), Owner: "ws-u1"})
		require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
		require.NoError(t, issuer.Close())
		_, err = issuer.Order(t.Context(), tlsprovider.Order{Host: host(t, "d.example.org"), Owner: "ws-u1"})
		require.Error(t, err)
	})
}
