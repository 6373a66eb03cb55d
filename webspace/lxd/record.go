package lxd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
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
	waiting, cancel := context.WithTimeoutCause(ctx, r.opts.CallTimeout, errBusy)
	defer cancel()
	unlock, err := r.writers.Lock(waiting, name)
	if err != nil {
		return fmt.Errorf("lxd: wait for other changes of %s: %w", name, context.Cause(waiting))
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
