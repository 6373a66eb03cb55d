// Package static is an issuer of certificates that are in files already: the operator's own, such as a wildcard certificate.
//
//	i, err := static.New([]static.Pair{{CertFile: "/etc/webspaced/tls.crt", KeyFile: "/etc/webspaced/tls.key"}}, nil)
//
// A host has the certificate that covers it. Files are read again when they change; as long as the new ones are of no use,
// such as half written, what was read before stays.
package static

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Pair is a certificate with its intermediates, and its key, each a file in PEM.
type Pair struct{ CertFile, KeyFile string }

// Options of an [Issuer]. The zero value of each is its default.
type Options struct {
	// Poll is how often the files are looked at [10 s].
	Poll time.Duration
	// Warn is how long before a certificate expires that is a problem [7 days].
	Warn time.Duration
	// Logger [slog.Default].
	Logger *slog.Logger
}

// Issuer has the certificates of some files. It implements [tlsprovider.Issuer], [tlsprovider.Watcher] and
// [tlsprovider.Holder], and is safe for concurrent use.
type Issuer struct {
	opts Options

	mu       sync.Mutex
	pairs    []*loaded
	orders   map[provider.Host]*order
	watchers map[*func(provider.Host)]bool

	cancel context.CancelFunc
	task   sync.WaitGroup
}

var (
	_ tlsprovider.Issuer  = (*Issuer)(nil)
	_ tlsprovider.Watcher = (*Issuer)(nil)
	_ tlsprovider.Holder  = (*Issuer)(nil)
)

type order struct {
	owner string
	told  tlsprovider.Status // what watchers know
}

// loaded is a pair that was read.
type loaded struct {
	Pair
	seen  [2]os.FileInfo // the files when they were read last, whatever came of it
	chain string
	key   provider.PrivateKey
	tls   *tls.Certificate
}

// New returns an Issuer of at least one pair of files. InvalidArgument, naming the file: it can not be read, has no
// certificate or no key, or the two do not belong together. One that has expired is none of these.
func New(pairs []Pair, opts *Options) (*Issuer, error) {
	if opts == nil {
		opts = &Options{}
	}
	i := &Issuer{opts: *opts, orders: map[provider.Host]*order{}, watchers: map[*func(provider.Host)]bool{}}
	i.opts.Poll = cmp.Or(opts.Poll, 10*time.Second)
	i.opts.Warn = cmp.Or(opts.Warn, 7*24*time.Hour)
	i.opts.Logger = cmp.Or(opts.Logger, slog.Default())
	if len(pairs) == 0 || i.opts.Poll < 0 || i.opts.Warn < 0 {
		return nil, fmt.Errorf("static certificates need a pair of files, and no negative times: %w", errdefs.ErrInvalidArgument)
	}
	for _, pair := range pairs {
		l := &loaded{Pair: pair}
		l.look()
		if err := l.read(); err != nil {
			return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		i.pairs = append(i.pairs, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	i.task.Go(func() { i.follow(ctx) })
	return i, nil
}

// Close ends the watching of the files.
func (i *Issuer) Close() error {
	i.cancel()
	i.task.Wait()
	return nil
}

// follow reads files again that have changed, and tells who watches what became of it.
func (i *Issuer) follow(ctx context.Context) {
	ticker := time.NewTicker(i.opts.Poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		i.mu.Lock()
		pairs := slices.Clone(i.pairs)
		i.mu.Unlock()
		for n, old := range pairs {
			fresh := *old
			if !fresh.look() {
				continue
			}
			if err := fresh.read(); err != nil {
				i.opts.Logger.Warn("certificate can not be read again; the one that was read before stays", "error", err)
			} else {
				i.opts.Logger.Info("certificate read again", "file", fresh.CertFile)
			}
			pairs[n] = &fresh
		}
		i.mu.Lock()
		i.pairs = pairs
		i.tell()
		i.mu.Unlock()
	}
}

// tell tells watchers which orders' status has changed; by the clock alone, too. i.mu is held.
func (i *Issuer) tell() {
	for host, o := range i.orders {
		status := i.status(host)
		if status == o.told {
			continue
		}
		o.told = status
		for changed := range i.watchers {
			(*changed)(host)
		}
	}
}

// Order implements [tlsprovider.Issuer].
func (i *Issuer) Order(ctx context.Context, wanted tlsprovider.Order) (tlsprovider.Status, error) {
	if err := ctx.Err(); err != nil {
		return tlsprovider.Status{}, err
	}
	if err := wanted.Validate(); err != nil {
		return tlsprovider.Status{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	status := i.status(wanted.Host)
	i.orders[wanted.Host] = &order{owner: wanted.Owner, told: status}
	return status, nil
}

// Cancel implements [tlsprovider.Issuer].
func (i *Issuer) Cancel(ctx context.Context, host provider.Host) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.orders, host)
	return nil
}

// Orders implements [tlsprovider.Issuer]. There are none after a restart: an order leaves nothing behind.
func (i *Issuer) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	orders := make([]tlsprovider.Order, 0, len(i.orders))
	for host, o := range i.orders {
		orders = append(orders, tlsprovider.Order{Host: host, Owner: o.owner})
	}
	slices.SortFunc(orders, func(a, b tlsprovider.Order) int { return a.Host.Compare(b.Host) })
	return orders, nil
}

// Watch implements [tlsprovider.Watcher].
func (i *Issuer) Watch(ctx context.Context, changed func(provider.Host)) error {
	i.mu.Lock()
	i.watchers[&changed] = true
	i.mu.Unlock()
	<-ctx.Done()
	i.mu.Lock()
	delete(i.watchers, &changed)
	i.mu.Unlock()
	return ctx.Err()
}

// GetCertificate implements [tlsprovider.Holder].
func (i *Issuer) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host, err := provider.ParseHost(hello.ServerName)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.orders[host] != nil {
		if l := i.covering(host); l != nil {
			return l.tls, nil
		}
	}
	return nil, fmt.Errorf("there is no certificate of %s: %w", host, errdefs.ErrNotFound)
}

// covering returns the pair whose certificate is good for a host, the one that is longest if there are several. i.mu is held.
func (i *Issuer) covering(host provider.Host) *loaded {
	var best *loaded
	for _, l := range i.pairs {
		if l.tls.Leaf.VerifyHostname(host.String()) != nil {
			continue
		}
		if best == nil || l.tls.Leaf.NotAfter.After(best.tls.Leaf.NotAfter) {
			best = l
		}
	}
	return best
}

// status of a host. i.mu is held.
func (i *Issuer) status(host provider.Host) tlsprovider.Status {
	l := i.covering(host)
	if l == nil {
		return tlsprovider.Status{Problem: fmt.Sprintf("none of this server's certificates covers %s: ask who runs it for one", host)}
	}
	status := tlsprovider.Status{Certificate: provider.Certificate{Host: host, Chain: l.chain, Key: l.key}}
	now, begin, end := time.Now(), l.tls.Leaf.NotBefore, l.tls.Leaf.NotAfter
	const day = "2 January 2006"
	switch {
	case now.Before(begin):
		status.Problem = fmt.Sprintf("the certificate of %s is not valid before %s", host, begin.UTC().Format(day))
	case !now.Before(end):
		status.Problem = fmt.Sprintf("the certificate of %s has expired on %s", host, end.UTC().Format(day))
	case end.Sub(now) < i.opts.Warn:
		status.Problem = fmt.Sprintf("the certificate of %s expires on %s", host, end.UTC().Format(day))
	}
	return status
}

// look reports whether one of the files is another than when it was looked at last.
func (l *loaded) look() bool {
	changed := false
	for n, path := range []string{l.CertFile, l.KeyFile} {
		before := l.seen[n]
		now, err := os.Stat(path)
		if err != nil {
			now = nil
		}
		l.seen[n] = now
		if now == nil || before == nil {
			changed = changed || (now == nil) != (before == nil)
			continue
		}
		changed = changed || !os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) || now.Size() != before.Size()
	}
	return changed
}

// read reads both files. If one is of no use, l keeps what it has.
func (l *loaded) read() error {
	chain, err := blocks(l.CertFile, "CERTIFICATE")
	if err != nil {
		return err
	}
	key, err := blocks(l.KeyFile, "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY")
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", l.CertFile, l.KeyFile, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("certificate %s: %w", l.CertFile, err)
		}
	}
	if len(pair.Leaf.DNSNames) == 0 {
		return fmt.Errorf("certificate %s names no host among its alternative names", l.CertFile)
	}
	l.chain, l.key, l.tls = string(chain), provider.PrivateKey(key), &pair
	return nil
}

// blocks returns the PEM blocks of these types in a file, without whatever is between them.
func blocks(path string, types ...string) ([]byte, error) {
	const most = 64 << 10 // of a provider.Certificate
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, err
	}
	if len(content) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", path, most)
	}
	var all bytes.Buffer
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if len(block.Headers) > 0 {
			return nil, fmt.Errorf("%s is encrypted, or has headers", path)
		}
		if slices.Contains(types, block.Type) {
			all.Write(pem.EncodeToMemory(block))
		}
	}
	if all.Len() == 0 {
		return nil, errors.New(path + " has no " + types[0] + " in PEM in it")
	}
	return all.Bytes(), nil
}
