package webspace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

// Exec runs a command in a webspace, which is started if need be. See [Execer]. NotImplemented: the runtime runs no
// commands.
func (m *Manager) Exec(ctx context.Context, id identity.UserID, opts ExecOptions) (exitCode int, err error) {
	execer, ok := m.runtime.(Execer)
	if !ok {
		return 0, fmt.Errorf("this runtime runs no commands: %w", errdefs.ErrNotImplemented)
	}
	err = m.whileUp(ctx, id, func(name string) error {
		exitCode, err = execer.Exec(ctx, name, opts)
		return err
	})
	return exitCode, err
}

// Console attaches to the console of a webspace, which is started if need be. See [Consoler]. NotImplemented: the
// runtime has no consoles.
func (m *Manager) Console(ctx context.Context, id identity.UserID, opts ConsoleOptions) error {
	consoler, ok := m.runtime.(Consoler)
	if !ok {
		return fmt.Errorf("this runtime has no consoles: %w", errdefs.ErrNotImplemented)
	}
	return m.whileUp(ctx, id, func(name string) error { return consoler.Console(ctx, name, opts) })
}

// whileUp does something that needs a running instance.
func (m *Manager) whileUp(ctx context.Context, id identity.UserID, do func(name string) error) error {
	for attempt := 0; ; attempt++ {
		name, err := m.ensureUp(ctx, id)
		if err != nil {
			return err
		}
		err = do(name)
		// It was stopped in between: that is decided before a command or its input is touched.
		if attempt == 0 && errdefs.IsFailedPrecondition(err) {
			continue
		}
		if errdefs.IsNotFound(err) {
			err = m.wrap(id, err)
		}
		return err
	}
}

// ensureUp starts a webspace unless it runs, and returns the name of its instance. It does not wait until it is ready.
func (m *Manager) ensureUp(ctx context.Context, id identity.UserID) (name string, err error) {
	_, instance, err := m.read(ctx, id)
	if err != nil {
		return "", err
	}
	if instance.Status != StatusRunning {
		if err := m.Start(ctx, id); err != nil && !errors.Is(err, errRunning) {
			return "", err
		}
	}
	return instance.Name, nil
}

// Bounds of [Manager.Shell], in bytes.
const (
	maxShellCommand = 64 << 10
	maxShellOutput  = 1 << 20
)

// ShellResult is what came of a command.
type ShellResult struct {
	Stdout, Stderr []byte // the first MiB of each
	// More was printed than is kept. The command went on all the same.
	StdoutTruncated, StderrTruncated bool
	ExitCode                         int
}

// Shell runs a command line with /bin/sh -c, as root and without input, in a webspace, which is started if need be. The
// command line is limited to 64 KiB and can be seen by others on the way: engines put it into their events and logs.
//
// All of it may take [Options.ShellTimeout]; then, or when ctx ends, the command is killed, and what it had printed until
// then is returned with the error, which wraps that of the context. What the command has left in the background is not
// ended with it. InvalidArgument: the command is empty, too long, or has a NUL in it; NotFound: the user has no webspace;
// NotImplemented: the runtime runs no commands.
func (m *Manager) Shell(ctx context.Context, id identity.UserID, command string) (ShellResult, error) {
	switch {
	case strings.TrimSpace(command) == "":
		return ShellResult{}, invalid("command: it is empty")
	case len(command) > maxShellCommand:
		return ShellResult{}, invalid("command: it has more than %d bytes", maxShellCommand)
	case strings.ContainsRune(command, 0):
		return ShellResult{}, invalid("command: it has a NUL in it")
	}
	limited, cancel := context.WithTimeout(ctx, m.opts.ShellTimeout)
	defer cancel()
	stdout, stderr := head{limit: maxShellOutput}, head{limit: maxShellOutput}
	code, err := m.Exec(limited, id, ExecOptions{
		Command: []string{"/bin/sh", "-c", command}, Stdout: &stdout, Stderr: &stderr,
	})
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the command was ended after %v: %w", m.opts.ShellTimeout, context.DeadlineExceeded)
	}
	result := ShellResult{ExitCode: code}
	result.Stdout, result.StdoutTruncated = stdout.take()
	result.Stderr, result.StderrTruncated = stderr.take()
	return result, err
}

// head keeps the first bytes that are written to it and drops the rest. A runtime may still write to it after a command
// was given up.
type head struct {
	limit int

	mu        sync.Mutex
	kept      []byte
	truncated bool
	taken     bool
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taken {
		return len(p), nil
	}
	n := min(len(p), h.limit-len(h.kept))
	h.kept = append(h.kept, p[:n]...)
	h.truncated = h.truncated || n < len(p)
	return len(p), nil
}

// take returns what was kept. Nothing more is.
func (h *head) take() (kept []byte, truncated bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken = true
	return h.kept, h.truncated
}
