package lxd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"
)

// SetRecord implements [webspace.Runtime].
//
// A revision is a digest of the record, not the instance's ETag: that one also covers what the engine itself writes at each
// start and stop. The ETag read together with the record makes the write safe, and when it was something else that
// changed, the write is tried again. Writers of one instance come one after the other, because the engine refuses
// concurrent ones, and the check of an ETag and the write it guards are not one step in it.
func (r *Runtime) SetRecord(ctx context.Context, name string, record []byte, revision string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkRecord(record); err != nil {
		return err
	}
	unlock, err := r.writers.lock(ctx, name, r.opts.CallTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, busyLimit, func() error {
		i, etag, err := r.instance(ctx, name)
		if err != nil {
			return err
		}
		if revision != "" && revision != revisionOf(recordOf(i)) {
			return fmt.Errorf("lxd: the record of %s has changed: %w", name, errdefs.ErrConflict)
		}
		// Whatever a PATCH leaves out stays, except the description.
		change := map[string]any{"config": map[string]string{recordKey: string(record)}, "description": i.Description}
		return r.client.change(ctx, r.opts.CallTimeout, http.MethodPatch, r.client.path(nil, "instances", name), change, etag)
	})
}

// checkRecord refuses what would not come back byte for byte: values of the engine's configuration are text.
func checkRecord(record []byte) error {
	if !utf8.Valid(record) || bytes.IndexByte(record, 0) >= 0 {
		return fmt.Errorf("lxd: a record has to be UTF-8 text without NUL: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func recordOf(i *api.Instance) []byte {
	if v := i.Config[recordKey]; v != "" {
		return []byte(v)
	}
	return nil
}

func revisionOf(record []byte) string {
	sum := sha256.Sum256(record)
	return hex.EncodeToString(sum[:])
}

// locks are mutexes by name. They exist while somebody holds or wants them.
type locks struct {
	mu   sync.Mutex
	held map[string]*heldLock
}

type heldLock struct {
	token chan struct{} // full while somebody has the lock
	users int
}

// lock waits for the lock of name, for limit at most. The returned function gives it back.
func (l *locks) lock(ctx context.Context, name string, limit time.Duration) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*heldLock{}
	}
	h := l.held[name]
	if h == nil {
		h = &heldLock{token: make(chan struct{}, 1)}
		l.held[name] = h
	}
	h.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case h.token <- struct{}{}:
		return func() { <-h.token; leave() }, nil
	case <-time.After(limit):
		leave()
		return nil, fmt.Errorf("lxd: %s: %w", name, errBusy)
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("lxd: %w", ctx.Err())
	}
}
