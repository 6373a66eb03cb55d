//go:build linux

package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// process is that of a running instance: the leader of a session and of a process group of its own. It is a child of
// this program or of an earlier one.
type process struct {
	identity
	fd       *os.File // pidfd, readable once the process has ended
	exited   chan struct{}
	stopping int // callers of Stop
}

// identity is the content of process.json. A process ID alone may be somebody else's by now.
type identity struct {
	PID       int
	Ticks     uint64 // when it started, in the kernel's clock ticks since the host did
	StartedAt time.Time
}

// follow watches over a process that has just been started or found.
func (r *Runtime) follow(i *instance, id identity) error {
	if r.ctx.Err() != nil {
		return errClosed // and Close has passed by this instance
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	p := &process{identity: id, fd: os.NewFile(uintptr(fd), "pidfd"), exited: make(chan struct{})}
	i.process = p
	r.group.Go(func() { r.supervise(i, p) })
	return nil
}

// supervise cleans up after the process when it has ended, unless the runtime is closed before.
func (r *Runtime) supervise(i *instance, p *process) {
	conn, err := p.fd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool { return readable(fd) })
	}
	if err != nil {
		return // closed: the next runtime takes over
	}
	i.mu.Lock()
	// Before it is reaped: as long as the process is a zombie nobody else gets its ID, so the group is still ours.
	sweep(i.dir)
	_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil) // not our child: whoever's it is does it
	_ = os.Remove(filepath.Join(i.dir, processFile))
	_ = p.fd.Close()
	i.process = nil
	i.mu.Unlock()
	close(p.exited)
	r.emit(i.name)
}

func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// ended says whether the process has, though nobody may have cleaned up yet.
func (p *process) ended() bool {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return true
	}
	ended := true
	_ = conn.Control(func(fd uintptr) { ended = readable(fd) })
	return ended
}

// signal reaches the whole group. The instance's lock is held, so that the process is not reaped meanwhile.
func (i *instance) signal(p *process, signal unix.Signal) {
	if i.process == p && !p.ended() {
		_ = unix.Kill(-p.PID, signal)
	}
}

// adopt takes over the process that an earlier program started, and clears away what is left of one that is gone.
func (r *Runtime) adopt(i *instance) {
	path := filepath.Join(i.dir, processFile)
	var id identity
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &id)
	}
	if err == nil && id.alive(i.dir) && r.follow(i, id) == nil {
		// Between the look and the pidfd it may have ended, and its ID gone to another.
		if id.alive(i.dir) {
			return
		}
		_ = i.process.fd.Close()
		i.process = nil
	}
	if stat, statErr := readStat(id.PID); err == nil && statErr == nil && stat.zombie && stat.ticks == id.Ticks {
		_, _ = unix.Wait4(id.PID, nil, unix.WNOHANG, nil) // a child of this program's, from an earlier runtime
	}
	// Also a process whose start was not written down: nobody was told that it runs.
	sweepOrphans(i.dir)
	_ = os.Remove(path)
}

// alive says whether this very process runs.
func (id identity) alive(dir string) bool {
	stat, err := readStat(id.PID)
	return err == nil && stat.ticks == id.Ticks && marked(id.PID, dir)
}

// environment is all that a process of an instance gets.
func (r *Runtime) environment(i *instance, extra map[string]string) []string {
	env := []string{
		"ADDRESS=" + i.meta.Address.String(),
		"HOME=" + i.home(),
		"NAME=" + i.name,
		"PATH=" + searchPath,
	}
	for _, more := range []map[string]string{r.opts.Images[i.meta.Image].Env, extra} {
		for key, value := range more {
			env = append(env, key+"="+value)
		}
	}
	return append(env, mark+i.dir)
}

// launch starts the process of a stopped instance.
func (r *Runtime) launch(i *instance) error {
	image, ok := r.opts.Images[i.meta.Image]
	if !ok {
		return fmt.Errorf("its image %q is no more: %w", i.meta.Image, errdefs.ErrFailedPrecondition)
	}
	path, err := lookUp(image.Command[0])
	if err != nil {
		return fmt.Errorf("%s: %w", image.Command[0], errdefs.ErrFailedPrecondition)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	console, err := os.OpenFile(filepath.Join(i.dir, consoleFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	argv := image.Command
	if argv[0] == selfProgram {
		argv = append([]string{helloProgram}, argv[1:]...)
	}
	child, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir:   i.home(),
		Env:   r.environment(i, nil),
		Files: []*os.File{null, console, console},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	id := identity{PID: child.Pid, StartedAt: time.Now()}
	_ = child.Release() // supervise reaps it
	stat, err := readStat(id.PID)
	if err == nil {
		id.Ticks = stat.ticks
		err = id.write(i.dir)
	}
	if err == nil {
		err = r.follow(i, id)
	}
	if err != nil {
		_ = unix.Kill(-id.PID, unix.SIGKILL)
		_, _ = unix.Wait4(id.PID, nil, 0, nil)
		sweep(i.dir)
	}
	return err
}

// write needs no sync: what it tells of does not survive the host either.
func (id identity) write(dir string) error {
	content, err := json.Marshal(id)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, processFile)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Start implements [webspace.Runtime].
func (r *Runtime) Start(ctx context.Context, name string) error {
	for {
		i, err := r.find(ctx, name)
		if err != nil {
			return err
		}
		p := i.process
		switch {
		case i.broken != nil:
			err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, i.broken)
		case p == nil:
			if err = r.launch(i); err == nil {
				r.emit(name)
			}
		}
		running := p == nil || p.stopping == 0 && !p.ended()
		i.mu.Unlock()
		if err != nil {
			return fmt.Errorf("start instance %q: %w", name, err)
		}
		if running {
			return nil
		}
		if err := r.await(ctx, p, nil); err != nil {
			return err
		}
	}
}

var errGrace = errors.New("the grace is over")

// await waits until the process has ended.
func (r *Runtime) await(ctx context.Context, p *process, grace <-chan time.Time) error {
	select {
	case <-p.exited:
		return nil
	case <-grace:
		return errGrace
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return errClosed
	}
}

// killTime is how long the kernel gets to end what is killed.
const killTime = 20 * time.Second

// Stop implements [webspace.Runtime]. When ctx ends first, the instance was asked to shut down and may do so yet.
func (r *Runtime) Stop(ctx context.Context, name string, grace time.Duration) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	p := i.process
	if p == nil {
		if i.broken != nil {
			sweepOrphans(i.dir)
		}
		i.mu.Unlock()
		return nil
	}
	p.stopping++
	signal, limit := unix.SIGTERM, grace
	if grace <= 0 {
		signal, limit = unix.SIGKILL, killTime
	}
	i.signal(p, signal)
	i.mu.Unlock()
	r.emit(name)
	defer func() {
		i.mu.Lock()
		p.stopping--
		i.mu.Unlock()
	}()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	err = r.await(ctx, p, timer.C)
	if err == errGrace && signal != unix.SIGKILL {
		i.mu.Lock()
		i.signal(p, unix.SIGKILL)
		i.mu.Unlock()
		timer.Reset(killTime)
		err = r.await(ctx, p, timer.C)
	}
	if err == errGrace {
		return fmt.Errorf("instance %q was killed and still runs: %w", name, errdefs.ErrUnavailable)
	}
	return err
}

// Restart implements [webspace.Runtime].
func (r *Runtime) Restart(ctx context.Context, name string, grace time.Duration) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	status := i.status()
	i.mu.Unlock()
	if status != webspace.StatusRunning {
		return fmt.Errorf("instance %q is %s: %w", name, status, errdefs.ErrFailedPrecondition)
	}
	if err := r.Stop(ctx, name, grace); err != nil {
		return err
	}
	return r.Start(ctx, name)
}
