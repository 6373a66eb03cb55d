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
	// What the engine fails with for reasons of its own, or ours: whoever calls has done nothing wrong.
	errFailed = fmt.Errorf("the engine failed: %w", errdefs.ErrUnavailable)
	// It does not let us: the certificate has expired or was removed, or the project is restricted.
	errDenied = fmt.Errorf("not permitted: %w", errFailed)
	// Incus says by these what elsewhere are the exit codes 127 and 126.
	errNoCommand     = fmt.Errorf("no such command: %w", errFailed)
	errNotExecutable = fmt.Errorf("no command: %w", errFailed)
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

// statuses are those that mean something to callers. What they may give is checked before the engine sees it, so that even
// 400 is no fault of theirs.
var statuses = map[int]error{
	http.StatusUnauthorized:       errDenied,
	http.StatusForbidden:          errDenied,
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
	class, ok := statuses[status]
	if !ok {
		class = errFailed
	}
	if class == errDenied && c.denied != nil {
		c.denied(err)
	}
	return fmt.Errorf("lxd: %v: %w", err, class)
}

// making drops AlreadyExists where nothing of a name is made: what exists is a device or a rule of the engine's.
func making(method string, err error) error {
	if method != http.MethodPost && errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%v: %w", err, errFailed)
	}
	return err
}

// connecting gives errors the classes that they have while we connect: not being let in is an answer then.
func connecting(err error) error {
	if errors.Is(err, errDenied) {
		said := strings.TrimSuffix(err.Error(), ": "+errDenied.Error())
		return fmt.Errorf("%s: %w", said, errdefs.ErrPermissionDenied)
	}
	return err
}

// connected gives errors the classes that they have after that: what is missing of the configuration is missing for any
// caller.
func connected(err error) error {
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("%v: %w", err, errFailed)
	}
	return err
}

// checkName refuses what is no name of ours before it gets anywhere near a URL.
func checkName(name string) error {
	if !provider.IsLabel(name) {
		return fmt.Errorf("lxd: %.64q is not the name of an instance: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}
