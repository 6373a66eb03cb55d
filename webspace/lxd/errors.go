package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/provider"
)

// What callers in this package need to tell apart within a class.
var (
	errBusy         = fmt.Errorf("instance is busy: %w", errdefs.ErrConflict)
	errAlready      = fmt.Errorf("nothing to do: %w", errdefs.ErrFailedPrecondition)
	errAddressTaken = fmt.Errorf("address is taken: %w", errdefs.ErrConflict)
	// Incus says by these what elsewhere are the exit codes 127 and 126.
	errNoCommand     = fmt.Errorf("no such command: %w", errdefs.ErrInternal)
	errNotExecutable = fmt.Errorf("no command: %w", errdefs.ErrInternal)
)

// texts give errors a class where the engines give none: an operation fails with a text alone, and much that is the
// caller's fault is answered with status 500 or 400. LXD 5.0 and Incus 6.0 say the same words, not always in the same case.
var texts = []struct {
	part  string
	class error
}{
	{"is busy running", errBusy},
	{"matching non-reusable operation", errBusy},
	{"create operation in progress", errBusy},
	{"already running", errAlready},
	{"already stopped", errAlready},
	{"instance is running", errdefs.ErrFailedPrecondition},
	{"instance is not running", errdefs.ErrFailedPrecondition},
	{"instance is frozen", errdefs.ErrFailedPrecondition},
	{"already defined on another nic", errAddressTaken},
	{"already connected", errdefs.ErrConflict}, // Incus, of a console
	{"already exists", errdefs.ErrAlreadyExists},
	{"unique constraint failed", errdefs.ErrAlreadyExists},
	{"command not found", errNoCommand},
	{"command not executable", errNotExecutable},
	{"instance not found", errdefs.ErrNotFound},
	{"open : no such file", errdefs.ErrNotFound}, // LXD, of a console that has printed nothing yet
}

var statuses = map[int]error{
	http.StatusBadRequest:         errdefs.ErrInvalidArgument,
	http.StatusUnauthorized:       errdefs.ErrPermissionDenied,
	http.StatusForbidden:          errdefs.ErrPermissionDenied,
	http.StatusNotFound:           errdefs.ErrNotFound,
	http.StatusConflict:           errdefs.ErrConflict,
	http.StatusPreconditionFailed: errBusy, // an ETag: what it stands for is looked at again before the next try
	http.StatusServiceUnavailable: errdefs.ErrUnavailable,
}

// operationError is what an operation failed with.
type operationError string

func (e operationError) Error() string { return string(e) }

// classify gives an error of the client library its class. ctx is the caller's: only its own end is a context error, a
// deadline of ours is the engine's fault.
func (c *client) classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("lxd: %w", ctx.Err())
	}
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		// A connection with the same deadline can be a little earlier than the context.
		return fmt.Errorf("lxd: %w", context.DeadlineExceeded)
	}
	status, answered := api.StatusErrorMatch(err)
	_, failed := errors.AsType[operationError](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("lxd: no answer within %v: %w", c.timeout, errdefs.ErrUnavailable)
	case !answered && !failed:
		return fmt.Errorf("lxd: %v: %w", err, errdefs.ErrUnavailable)
	}
	text := strings.ToLower(err.Error())
	for _, t := range texts {
		if strings.Contains(text, t.part) {
			return fmt.Errorf("lxd: %v: %w", err, t.class)
		}
	}
	if class, ok := statuses[status]; ok {
		return fmt.Errorf("lxd: %v: %w", err, class)
	}
	return fmt.Errorf("lxd: %v: %w", err, errdefs.ErrInternal)
}

// checkName refuses what is no name of ours before it gets anywhere near a URL.
func checkName(name string) error {
	if !provider.IsLabel(name) {
		return fmt.Errorf("lxd: %.64q is not the name of an instance: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}
