//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// searchPath is the PATH of instances.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// drainTime is how long the output of a command is waited for after its end, when others still have it open.
const drainTime = time.Second

// lookUp finds a program as an instance would. The error is ErrNotExist or ErrPermission.
func lookUp(program string) (string, error) {
	if strings.Contains(program, "/") {
		return program, executable(program)
	}
	found := error(fs.ErrNotExist)
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, program)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			found = err
		}
	}
	return "", found
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fs.ErrPermission
	}
	return unix.Access(path, unix.X_OK)
}

// Exec implements [webspace.Execer]. Users other than the program's own (which 0 stands for) need a program that runs as
// root: else PermissionDenied. A Read of Stdin that is under way when the command ends is not waited for.
func (r *Runtime) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
	if len(opts.Command) == 0 || opts.Command[0] == "" {
		return 0, fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
	}
	i, err := r.find(ctx, name)
	if err != nil {
		return 0, err
	}
	running, env, home := i.process != nil, r.environment(i, opts.Env), i.home()
	i.mu.Unlock()
	if !running {
		return 0, fmt.Errorf("instance %q does not run: %w", name, errdefs.ErrFailedPrecondition)
	}

	user, err := credential(opts)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if opts.Dir == "" {
		if opts.Dir = home; user != nil {
			opts.Dir = "/" // the home is not theirs
		}
	}
	program := opts.Command[0]
	if strings.Contains(program, "/") && !filepath.IsAbs(program) {
		program = filepath.Join(opts.Dir, program)
	}
	path, err := lookUp(program)
	if err != nil {
		return shellCode(err), nil
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Args, cmd.Env, cmd.Dir = opts.Command, env, opts.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: user}
	cmd.Cancel = func() error { return signalGroup(cmd.Process, unix.SIGKILL) }
	cmd.WaitDelay = drainTime
	if opts.Terminal != nil {
		err = runInTerminal(cmd, opts, cancel)
	} else {
		err = runPiped(cmd, opts, cancel)
	}
	return exitCode(ctx, err)
}

// credential is nil if the command runs as this program does.
func credential(opts webspace.ExecOptions) (*syscall.Credential, error) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if (opts.User == 0 || opts.User == uid) && (opts.Group == 0 || opts.Group == gid) {
		return nil, nil
	}
	if uid != 0 {
		return nil, fmt.Errorf("commands as user %d need root: %w", opts.User, errdefs.ErrPermissionDenied)
	}
	return &syscall.Credential{Uid: opts.User, Gid: opts.Group}, nil
}

// shellCode is what a shell exits with when it can not run a command.
func shellCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return 127
	}
	return 126
}

// exitCode tells the end of a command from a failure to run it.
func exitCode(ctx context.Context, err error) (int, error) {
	switch cause := context.Cause(ctx); {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case cause != nil && errors.Is(cause, errWrite):
		return 128 + int(unix.SIGKILL), nil
	case cause != nil:
		return 0, ctx.Err()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok { // of the start
		return shellCode(path), nil
	}
	return 0, err
}

// signalGroup reaches a command and what it has started, but not whoever has its ID after it.
func signalGroup(p *os.Process, signal unix.Signal) error {
	if err := p.Signal(unix.Signal(0)); err != nil {
		return err
	}
	return unix.Kill(-p.Pid, signal)
}

var errWrite = errors.New("the output could not be written")

// output kills the command when it can not be written.
type output struct {
	io.Writer
	cancel context.CancelCauseFunc
}

func (o output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil {
		o.cancel(errWrite)
	}
	return n, err
}

func runPiped(cmd *exec.Cmd, opts webspace.ExecOptions, cancel context.CancelCauseFunc) error {
	if opts.Stdout != nil {
		cmd.Stdout = output{opts.Stdout, cancel}
	}
	if opts.Stderr != nil {
		cmd.Stderr = output{opts.Stderr, cancel}
	}
	if opts.Stdin == nil {
		return cmd.Run()
	}
	// Not cmd.Stdin: a command that does not read its input would be waited for until the next Read returns.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(stdin, opts.Stdin)
		_ = stdin.Close()
	}()
	return cmd.Wait()
}
