package acme

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// record is what is kept of a host, as JSON in a file of its own.
type record struct {
	host provider.Host

	Host  string `json:"host"`
	Owner string `json:"owner,omitempty"` // empty: cancelled

	Chain string `json:"chain,omitempty"` // PEM
	Key   string `json:"key,omitempty"`   // PEM
	// Renew is when the certificate is to be renewed.
	Renew time.Time `json:"renew,omitzero"`

	// Attempts of the last 24 hours, the oldest first.
	Attempts []attempt `json:"attempts,omitempty"`
	// Failures since the last success.
	Failures int `json:"failures,omitempty"`
	// Next is when the next attempt may be made, after one that failed.
	Next    time.Time `json:"next,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

// attempt is one order of the authority.
type attempt struct {
	At     time.Time `json:"at"`
	Owner  string    `json:"owner"`
	Issued bool      `json:"issued,omitempty"`
}

const (
	day         = 24 * time.Hour
	maxAttempts = 64 // of a record: the back-off allows fewer in a day
	maxFile     = 256 << 10
)

func (r record) clone() record {
	r.Attempts = slices.Clone(r.Attempts)
	return r
}

// prune forgets attempts that do not count any more, and what a clock that was wrong has written.
func (r *record) prune(now time.Time) {
	r.Attempts = slices.DeleteFunc(r.Attempts, func(a attempt) bool { return a.At.After(now) || now.Sub(a.At) > day })
	r.Attempts = r.Attempts[max(0, len(r.Attempts)-maxAttempts):]
	if r.Next.After(now.Add(maxWait)) {
		r.Next = now.Add(maxWait)
	}
}

// pair returns the record's certificate, nil if it has none for its host, or one whose key is another.
func (r record) pair() *tls.Certificate {
	if r.Chain == "" {
		return nil
	}
	pair, err := tls.X509KeyPair([]byte(r.Chain), []byte(r.Key))
	if err != nil || pair.Leaf == nil || pair.Leaf.VerifyHostname(r.Host) != nil || r.certificate().Validate() != nil {
		return nil
	}
	return &pair
}

// good reports whether there is a certificate that a client accepts now.
func (r record) good(now time.Time) bool {
	pair := r.pair()
	return pair != nil && now.Before(pair.Leaf.NotAfter)
}

func (r record) certificate() provider.Certificate {
	return provider.Certificate{Host: r.host, Chain: r.Chain, Key: provider.PrivateKey(r.Key)}
}

func (h *host) status() tlsprovider.Status {
	status := tlsprovider.Status{Problem: cmp.Or(h.Problem, h.held)}
	if h.served != nil && time.Now().Before(h.served.Leaf.NotAfter) {
		status.Certificate = h.certificate()
	}
	return status
}

// store is a directory of records.
type store struct {
	dir  string
	lock *os.File // nil as long as somebody else may write
	log  *slog.Logger
}

// openStore makes the directory if need be, and locks it. On standby, another one may have it.
func openStore(dir string, o Options) (*store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "hosts")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, classed(err)
		}
		if err := os.Chmod(d, 0o700); err != nil { // it has private keys in it
			return nil, classed(err)
		}
	}
	s := &store{dir: dir, log: o.Logger}
	if err := s.acquire(); err != nil && !(o.Standby && errors.Is(err, errInUse)) {
		return nil, err
	}
	return s, nil
}

// acquire locks the store. The error is errInUse if somebody else has.
func (s *store) acquire() error {
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return classed(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("%s: %w: %w", s.dir, errInUse, err), lock.Close())
	}
	s.lock = lock
	return nil
}

var errInUse = fmt.Errorf("the directory is in use: %w", errdefs.ErrUnavailable)

func (s *store) close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// file of a host. Names that are too long for one with its ending are hashed, and have no dot, as every host has.
func (s *store) file(name provider.Host) string {
	base := name.String()
	if len(base) > 230 {
		sum := sha256.Sum256([]byte(base))
		base = hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.dir, "hosts", base+".json")
}

// load returns all records. A file that is none, is not where it should be, or can not be read is left alone.
func (s *store) load() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "hosts"))
	if err != nil {
		return nil, classed(err)
	}
	var records []record
	for _, entry := range entries {
		path := filepath.Join(s.dir, "hosts", entry.Name())
		if strings.HasPrefix(entry.Name(), tmpPrefix) {
			if s.lock != nil {
				_ = os.Remove(path) // what a write that was interrupted has left
			}
			continue
		}
		if !strings.HasSuffix(entry.Name(), ".json") {
			continue
		}
		content, err := readFile(path)
		if err == nil {
			var r record
			if r, err = decode(content); err == nil && s.file(r.host) != path {
				err = fmt.Errorf("it is about %s", r.host)
			}
			if err == nil {
				records = append(records, r)
			}
		}
		if err != nil {
			s.log.Warn("file of a certificate is of no use", "file", path, "error", err)
		}
	}
	return records, nil
}

func decode(content []byte) (record, error) {
	var r record
	if err := json.Unmarshal(content, &r); err != nil {
		return record{}, err
	}
	var err error
	if r.host, err = provider.ParseHost(r.Host); err != nil {
		return record{}, err
	}
	if r.Owner != "" && !provider.IsLabel(r.Owner) {
		return record{}, fmt.Errorf("owner %.80q is not a DNS label", r.Owner)
	}
	r.Host = r.host.String()
	r.Failures = min(max(r.Failures, 0), 1000)
	r.Problem = oneLine(r.Problem)
	r.prune(time.Now())
	return r, nil
}

func (s *store) save(r record) error {
	content, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return replaceFile(s.file(r.host), content)
}

func (s *store) remove(name provider.Host) error {
	err := os.Remove(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return classed(err)
}

func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return content, err
}

const tmpPrefix = ".new-"

// replaceFile writes a file so that it is the old one or the new one at any moment.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return classed(err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return classed(errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// classed gives errors of the file system a class.
func classed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", errdefs.ErrPermissionDenied, err)
	}
	return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
}
