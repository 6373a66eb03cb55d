package runtimetest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// broken is a runtime with a defect: each function that is set stands for the method.
type broken struct {
	*runtimetest.Fake
	list      func(ctx context.Context, prefix string) ([]webspace.Instance, error)
	get       func(ctx context.Context, name string) (webspace.Instance, error)
	create    func(ctx context.Context, name string, opts webspace.CreateOptions) error
	remove    func(ctx context.Context, name string) error
	start     func(ctx context.Context, name string) error
	stop      func(ctx context.Context, name string, grace time.Duration) error
	restart   func(ctx context.Context, name string, grace time.Duration) error
	setRecord func(ctx context.Context, name string, record []byte, revision string) error
	state     func(ctx context.Context, name string) (webspace.State, error)
	watch     func(ctx context.Context, notify func(webspace.Event)) error
	exec      func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error)
	console   func(ctx context.Context, name string, opts webspace.ConsoleOptions) error
	log       func(ctx context.Context, name string, limit int64) ([]byte, error)
	clearLog  func(ctx context.Context, name string) error
	images    func(ctx context.Context) ([]webspace.Image, error)
}

func (b *broken) List(ctx context.Context, prefix string) ([]webspace.Instance, error) {
	return b.list(ctx, prefix)
}
func (b *broken) Get(ctx context.Context, name string) (webspace.Instance, error) {
	return b.get(ctx, name)
}
func (b *broken) Create(ctx context.Context, name string, opts webspace.CreateOptions) error {
	return b.create(ctx, name, opts)
}
func (b *broken) Delete(ctx context.Context, name string) error { return b.remove(ctx, name) }
func (b *broken) Start(ctx context.Context, name string) error  { return b.start(ctx, name) }
func (b *broken) Stop(ctx context.Context, name string, grace time.Duration) error {
	return b.stop(ctx, name, grace)
}
func (b *broken) Restart(ctx context.Context, name string, grace time.Duration) error {
	return b.restart(ctx, name, grace)
}
func (b *broken) SetRecord(ctx context.Context, name string, record []byte, revision string) error {
	return b.setRecord(ctx, name, record, revision)
}
func (b *broken) State(ctx context.Context, name string) (webspace.State, error) {
	return b.state(ctx, name)
}
func (b *broken) Watch(ctx context.Context, notify func(webspace.Event)) error {
	return b.watch(ctx, notify)
}
func (b *broken) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
	return b.exec(ctx, name, opts)
}
func (b *broken) Console(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
	return b.console(ctx, name, opts)
}
func (b *broken) Log(ctx context.Context, name string, limit int64) ([]byte, error) {
	return b.log(ctx, name, limit)
}
func (b *broken) ClearLog(ctx context.Context, name string) error { return b.clearLog(ctx, name) }
func (b *broken) Images(ctx context.Context) ([]webspace.Image, error) {
	return b.images(ctx)
}

// whole returns a broken without a defect yet.
func whole(f *runtimetest.Fake) *broken {
	return &broken{
		Fake: f, list: f.List, get: f.Get, create: f.Create, remove: f.Delete, start: f.Start, stop: f.Stop,
		restart: f.Restart, setRecord: f.SetRecord, state: f.State, watch: f.Watch, exec: f.Exec, console: f.Console,
		log: f.Log, clearLog: f.ClearLog, images: f.Images,
	}
}

func is(f *runtimetest.Fake, name string, status webspace.Status) bool {
	i, err := f.Get(context.Background(), name)
	return err == nil && i.Status == status
}

// defect is one way to break a runtime, and the subtest that has to find it.
type defect struct {
	subtest string
	plant   func(b *broken, f *runtimetest.Fake)
}

var errPlanted = errors.New("planted")

var defects = map[string]defect{
	"record forgotten": {"Create", func(b *broken, f *runtimetest.Fake) {
		b.create = func(ctx context.Context, name string, opts webspace.CreateOptions) error {
			return f.Create(ctx, name, webspace.CreateOptions{Image: opts.Image})
		}
	}},
	"create replaces": {"CreateTwice", func(b *broken, f *runtimetest.Fake) {
		b.create = func(ctx context.Context, name string, opts webspace.CreateOptions) error {
			f.Remove(name)
			return f.Create(ctx, name, opts)
		}
	}},
	"any image will do": {"CreateUnknownImage", func(b *broken, f *runtimetest.Fake) {
		b.create = func(ctx context.Context, name string, opts webspace.CreateOptions) error {
			opts.Image = "hello"
			return f.Create(ctx, name, opts)
		}
	}},
	"prefix ignored": {"ListPrefix", func(b *broken, f *runtimetest.Fake) {
		b.list = func(ctx context.Context, _ string) ([]webspace.Instance, error) { return f.List(ctx, "") }
	}},
	"prefix anywhere": {"ListPrefix", func(b *broken, f *runtimetest.Fake) {
		b.list = func(ctx context.Context, prefix string) (found []webspace.Instance, err error) {
			all, err := f.List(ctx, "")
			for _, i := range all {
				if strings.Contains(i.Name, prefix) {
					found = append(found, i)
				}
			}
			return found, err
		}
	}},
	"wrong class": {"NotFound", func(b *broken, f *runtimetest.Fake) {
		b.state = func(ctx context.Context, name string) (webspace.State, error) {
			state, err := f.State(ctx, name)
			if errdefs.IsNotFound(err) {
				err = fmt.Errorf("%q is unknown: %w", name, errdefs.ErrUnavailable)
			}
			return state, err
		}
	}},
	"second start fails": {"Start", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			if is(f, name, webspace.StatusRunning) {
				return fmt.Errorf("runs already: %w", errdefs.ErrFailedPrecondition)
			}
			return f.Start(ctx, name)
		}
	}},
	"second start restarts": {"Start", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			f.Crash(name)
			return f.Start(ctx, name)
		}
	}},
	"start returns early": {"Start", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			go func() { _ = f.Start(ctx, name) }()
			return nil
		}
	}},
	"starts do not join": {"StartConcurrently", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			if is(f, name, webspace.StatusStarting) {
				return errPlanted
			}
			return f.Start(ctx, name)
		}
	}},
	"second stop fails": {"Stop", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, grace time.Duration) error {
			if is(f, name, webspace.StatusStopped) {
				return errPlanted
			}
			return f.Stop(ctx, name, grace)
		}
	}},
	"stop returns early": {"Stop", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, _ time.Duration) error {
			_, err := f.Get(ctx, name)
			f.PowerOff(name)
			return err
		}
	}},
	"no grace, no stop": {"StopAtOnce", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, grace time.Duration) error {
			if grace == 0 && is(f, name, webspace.StatusRunning) {
				return nil
			}
			return f.Stop(ctx, name, grace)
		}
	}},
	"restart starts": {"Restart", func(b *broken, f *runtimetest.Fake) {
		b.restart = func(ctx context.Context, name string, _ time.Duration) error {
			f.Crash(name)
			return f.Start(ctx, name)
		}
	}},
	"restart does nothing": {"Restart", func(b *broken, f *runtimetest.Fake) {
		b.restart = func(ctx context.Context, name string, _ time.Duration) error {
			if is(f, name, webspace.StatusRunning) {
				return nil
			}
			return f.Restart(ctx, name, 0)
		}
	}},
	"running ones deleted": {"Delete", func(b *broken, f *runtimetest.Fake) {
		b.remove = func(ctx context.Context, name string) error {
			f.Crash(name)
			return f.Delete(ctx, name)
		}
	}},
	"second delete succeeds": {"Delete", func(b *broken, f *runtimetest.Fake) {
		b.remove = func(ctx context.Context, name string) error {
			if err := f.Delete(ctx, name); !errdefs.IsNotFound(err) {
				return err
			}
			return nil
		}
	}},
	"one address for all": {"Address", func(b *broken, f *runtimetest.Fake) {
		b.get = func(ctx context.Context, name string) (webspace.Instance, error) {
			i, err := f.Get(ctx, name)
			i.Address = netip.MustParseAddr("127.64.0.1")
			return i, err
		}
	}},
	"loopback": {"State", func(b *broken, f *runtimetest.Fake) {
		b.state = func(ctx context.Context, name string) (webspace.State, error) {
			state, err := f.State(ctx, name)
			if state.Interfaces != nil {
				state.Interfaces["lo"] = webspace.Interface{}
			}
			return state, err
		}
	}},
	"state remembered": {"State", func(b *broken, f *runtimetest.Fake) {
		b.state = func(ctx context.Context, name string) (webspace.State, error) {
			state, err := f.State(ctx, name)
			state.Memory = 1
			return state, err
		}
	}},
	"no class when busy": {"Conflicts", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, grace time.Duration) error {
			err := f.Stop(ctx, name, grace)
			if err == nil && grace == 0 && !is(f, name, webspace.StatusStopped) {
				return errPlanted
			}
			return err
		}
		b.restart = func(ctx context.Context, name string, grace time.Duration) error {
			err := f.Restart(ctx, name, grace)
			if errdefs.IsConflict(err) || errdefs.IsFailedPrecondition(err) {
				return errPlanted
			}
			return err
		}
	}},
	"goroutine left": {"Leaks", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			go func() { select {} }()
			return f.Start(ctx, name)
		}
	}},

	"record trimmed": {"Record", func(b *broken, f *runtimetest.Fake) {
		b.setRecord = func(ctx context.Context, name string, record []byte, revision string) error {
			return f.SetRecord(ctx, name, bytes.TrimSpace(record), revision)
		}
	}},
	"record cut": {"Record", func(b *broken, f *runtimetest.Fake) {
		b.setRecord = func(ctx context.Context, name string, record []byte, revision string) error {
			return f.SetRecord(ctx, name, record[:min(len(record), 16<<10)], revision)
		}
	}},
	"record shared": {"RecordIsACopy", func(b *broken, f *runtimetest.Fake) {
		var last webspace.Instance
		b.get = func(ctx context.Context, name string) (webspace.Instance, error) {
			i, err := f.Get(ctx, name)
			if i.Revision == last.Revision {
				return last, err
			}
			last = i
			return i, err
		}
	}},
	"record lost at start": {"RecordStays", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			return errors.Join(f.Start(ctx, name), f.SetRecord(ctx, name, nil, ""))
		}
	}},
	"revision ignored": {"Revision", func(b *broken, f *runtimetest.Fake) {
		b.setRecord = func(ctx context.Context, name string, record []byte, _ string) error {
			return f.SetRecord(ctx, name, record, "")
		}
	}},
	"revision required": {"Revision", func(b *broken, f *runtimetest.Fake) {
		b.setRecord = func(ctx context.Context, name string, record []byte, revision string) error {
			if revision == "" {
				return errPlanted
			}
			return f.SetRecord(ctx, name, record, revision)
		}
	}},
	"check, then act": {"RevisionRace", checkThenAct},
	"lost update":     {"RecordIncrements", checkThenAct},
	"context ignored": {"Cancelled", func(b *broken, f *runtimetest.Fake) {
		b.setRecord = func(ctx context.Context, name string, record []byte, revision string) error {
			return f.SetRecord(context.WithoutCancel(ctx), name, record, revision)
		}
	}},
	"work, then context": {"Cancelled", func(b *broken, f *runtimetest.Fake) {
		b.create = func(ctx context.Context, name string, opts webspace.CreateOptions) error {
			return errors.Join(f.Create(context.WithoutCancel(ctx), name, opts), ctx.Err())
		}
	}},
	"half a create": {"CancelDuringCreate", func(b *broken, f *runtimetest.Fake) {
		var taken sync.Map
		b.create = func(ctx context.Context, name string, opts webspace.CreateOptions) error {
			if _, again := taken.LoadOrStore(name, true); again {
				return errdefs.ErrAlreadyExists
			}
			return f.Create(ctx, name, opts)
		}
	}},
	"start not cancelled": {"CancelDuringStart", func(b *broken, f *runtimetest.Fake) {
		b.start = func(ctx context.Context, name string) error {
			<-ctx.Done()
			select {}
		}
	}},
	"wedged by cancelling": {"CancelDuringStart", func(b *broken, f *runtimetest.Fake) {
		var wedged atomic.Bool
		b.start = func(ctx context.Context, name string) error {
			err := f.Start(ctx, name)
			wedged.CompareAndSwap(false, err != nil)
			return err
		}
		b.get = func(ctx context.Context, name string) (webspace.Instance, error) {
			if wedged.Load() {
				return webspace.Instance{}, errPlanted
			}
			return f.Get(ctx, name)
		}
	}},
	"another error when cancelled": {"CancelDuringStop", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, grace time.Duration) error {
			if err := f.Stop(ctx, name, grace); err != nil && ctx.Err() != nil {
				return errPlanted
			}
			return nil
		}
	}},
	"name is a path": {"HostileNames", func(b *broken, f *runtimetest.Fake) {
		b.stop = func(ctx context.Context, name string, grace time.Duration) error {
			return f.Stop(ctx, path.Base(name), grace)
		}
	}},
	"name is a query": {"HostileNames", func(b *broken, f *runtimetest.Fake) {
		b.get = func(ctx context.Context, name string) (webspace.Instance, error) {
			name, _, _ = strings.Cut(name, "?")
			return f.Get(ctx, name)
		}
	}},

	"no first event": {"WatchBegins", func(b *broken, f *runtimetest.Fake) {
		b.watch = func(ctx context.Context, notify func(webspace.Event)) error {
			return f.Watch(ctx, func(e webspace.Event) {
				if e.Instance != "" {
					notify(e)
				}
			})
		}
	}},
	"watch never ends": {"WatchEnds", func(b *broken, f *runtimetest.Fake) {
		b.watch = func(ctx context.Context, notify func(webspace.Event)) error {
			return f.Watch(context.WithoutCancel(ctx), notify)
		}
	}},
	"wrong name": {"WatchChanges", func(b *broken, f *runtimetest.Fake) {
		b.watch = func(ctx context.Context, notify func(webspace.Event)) error {
			return f.Watch(ctx, func(e webspace.Event) {
				if e.Instance != "" {
					e.Instance += "-eth0"
				}
				notify(e)
			})
		}
	}},
	"delete not told": {"WatchChanges", func(b *broken, f *runtimetest.Fake) {
		b.watch = func(ctx context.Context, notify func(webspace.Event)) error {
			return f.Watch(ctx, func(e webspace.Event) {
				if _, err := f.Get(ctx, e.Instance); err == nil || e.Instance == "" {
					notify(e)
				}
			})
		}
	}},
	"one watcher only": {"WatchTwice", func(b *broken, f *runtimetest.Fake) {
		var busy atomic.Bool
		b.watch = func(ctx context.Context, notify func(webspace.Event)) error {
			if busy.Swap(true) {
				notify(webspace.Event{})
				<-ctx.Done()
				return ctx.Err()
			}
			return f.Watch(ctx, notify)
		}
	}},

	"streams merged": {"ExecOutput", execWith(func(opts *webspace.ExecOptions) { opts.Stderr = opts.Stdout })},
	"exit code lost": {"ExecOutput", func(b *broken, f *runtimetest.Fake) {
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			_, err := f.Exec(ctx, name, opts)
			return 0, err
		}
	}},
	"input cut": {"ExecInput", execWith(func(opts *webspace.ExecOptions) {
		if opts.Stdin != nil {
			opts.Stdin = io.LimitReader(opts.Stdin, 4096)
		}
	})},
	"environment lost": {"ExecEnvironment", execWith(func(opts *webspace.ExecOptions) { opts.Env = nil })},
	"directory lost":   {"ExecEnvironment", execWith(func(opts *webspace.ExecOptions) { opts.Dir = "/root" })},
	"always root":      {"ExecUser", execWith(func(opts *webspace.ExecOptions) { opts.User = 0 })},
	"unknown command is an error": {"ExecUnknownCommand", func(b *broken, f *runtimetest.Fake) {
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			code, err := f.Exec(ctx, name, opts)
			if code == 127 {
				err = errdefs.ErrNotFound
			}
			return code, err
		}
	}},
	"exec starts": {"ExecStopped", func(b *broken, f *runtimetest.Fake) {
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			if err := f.Start(ctx, name); err != nil {
				return 0, err
			}
			return f.Exec(ctx, name, opts)
		}
	}},
	"command left": {"ExecCancel", func(b *broken, f *runtimetest.Fake) {
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			done := make(chan int, 1)
			go func() {
				code, _ := f.Exec(context.WithoutCancel(ctx), name, opts)
				done <- code
			}()
			select {
			case code := <-done:
				return code, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}},
	"write error ignored": {"ExecWriteError", execWith(func(opts *webspace.ExecOptions) { opts.Stdout = nil })},
	"one command at a time": {"ExecConcurrently", func(b *broken, f *runtimetest.Fake) {
		var running atomic.Int32
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			defer running.Add(-1)
			if running.Add(1) > 1 {
				return 0, errPlanted
			}
			time.Sleep(10 * time.Millisecond)
			return f.Exec(ctx, name, opts)
		}
	}},
	"no terminal": {"ExecTerminal", execWith(func(opts *webspace.ExecOptions) { opts.Terminal = nil })},
	"no resize":   {"ExecTerminal", execWith(func(opts *webspace.ExecOptions) { opts.Terminal.Resize = nil })},
	"no signal":   {"ExecSignal", execWith(func(opts *webspace.ExecOptions) { opts.Terminal.Signal = nil })},

	"console silent": {"ConsoleOutput", consoleWith(func(opts *webspace.ConsoleOptions) { opts.Stdout = nil })},
	"console attached for ever": {"ConsoleOutput", func(b *broken, f *runtimetest.Fake) {
		var taken atomic.Bool
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			if taken.Swap(true) {
				return errdefs.ErrConflict
			}
			return f.Console(ctx, name, opts)
		}
	}},
	"console ends with the input": {"ConsoleOutput", func(b *broken, f *runtimetest.Fake) {
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			if opts.Stdin != nil {
				return nil
			}
			return f.Console(ctx, name, opts)
		}
	}},
	"nothing typed": {"ConsoleInput", consoleWith(func(opts *webspace.ConsoleOptions) { opts.Stdin = nil })},
	"console of a size": {"ConsoleInput", consoleWith(func(opts *webspace.ConsoleOptions) {
		if opts.Terminal != nil {
			opts.Terminal.Resize = nil
		}
	})},
	"console starts": {"ConsoleStopped", func(b *broken, f *runtimetest.Fake) {
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			if err := f.Start(ctx, name); err != nil {
				return err
			}
			return f.Console(ctx, name, opts)
		}
	}},
	"console outlives its instance": {"ConsoleStopped", func(b *broken, f *runtimetest.Fake) {
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			err := f.Console(ctx, name, opts)
			if err == nil {
				<-ctx.Done()
			}
			return err
		}
	}},
	"console error lost": {"ConsoleWriteError", func(b *broken, f *runtimetest.Fake) {
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			err := f.Console(ctx, name, opts)
			if ctx.Err() == nil && err != nil && !errdefs.IsFailedPrecondition(err) {
				err = nil
			}
			return err
		}
	}},

	"log without limit": {"Log", func(b *broken, f *runtimetest.Fake) {
		b.log = func(ctx context.Context, name string, _ int64) ([]byte, error) { return f.Log(ctx, name, 1<<20) }
	}},
	"beginning of the log": {"Log", func(b *broken, f *runtimetest.Fake) {
		b.log = func(ctx context.Context, name string, limit int64) ([]byte, error) {
			log, err := f.Log(ctx, name, 1<<20)
			return log[:min(limit, int64(len(log)))], err
		}
	}},
	"log not cleared": {"Log", func(b *broken, f *runtimetest.Fake) {
		b.clearLog = func(ctx context.Context, name string) error { return ctx.Err() }
	}},
	"no images": {"Images", func(b *broken, f *runtimetest.Fake) {
		b.images = func(ctx context.Context) ([]webspace.Image, error) { return nil, ctx.Err() }
	}},
	"capability lost": {"Interfaces", nil},
}

// checkThenAct compares the revision in a step of its own.
func checkThenAct(b *broken, f *runtimetest.Fake) {
	b.setRecord = func(ctx context.Context, name string, record []byte, revision string) error {
		i, err := f.Get(ctx, name)
		if err != nil {
			return err
		}
		if revision != "" && revision != i.Revision {
			return errdefs.ErrConflict
		}
		time.Sleep(time.Millisecond)
		return f.SetRecord(ctx, name, record, "")
	}
}

func execWith(change func(*webspace.ExecOptions)) func(*broken, *runtimetest.Fake) {
	return func(b *broken, f *runtimetest.Fake) {
		b.exec = func(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
			change(&opts)
			return f.Exec(ctx, name, opts)
		}
	}
}

func consoleWith(change func(*webspace.ConsoleOptions)) func(*broken, *runtimetest.Fake) {
	return func(b *broken, f *runtimetest.Fake) {
		b.console = func(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
			change(&opts)
			return f.Console(ctx, name, opts)
		}
	}
}

const defectVariable = "RUNTIMETEST_DEFECT"

// TestBroken is the suite on a runtime with the defect that the environment names. TestDefects runs it.
func TestBroken(t *testing.T) {
	defect, ok := defects[os.Getenv(defectVariable)]
	if !ok {
		t.Skip("run by TestDefects")
	}
	h := harness(func(f *runtimetest.Fake) webspace.Runtime {
		if defect.plant == nil {
			return struct{ webspace.Runtime }{f}
		}
		b := whole(f)
		defect.plant(b, f)
		return b
	})
	h.Timeout = 2 * time.Second
	runtimetest.Run(t, h)
}

// TestDefects has the suite find each defect, with the subtest that is there for it, in a process of its own; and each
// subtest find one.
func TestDefects(t *testing.T) {
	program, err := os.Executable()
	require.NoError(t, err)
	run := func(ctx context.Context, defect, pattern string) string {
		cmd := exec.CommandContext(ctx, program, "-test.run="+pattern, "-test.v", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), defectVariable+"="+defect)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}

	found := map[string]bool{}
	for name, defect := range defects {
		found[defect.subtest] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := run(t.Context(), name, "^TestBroken$/^"+defect.subtest+"$")
			require.Contains(t, out, "--- FAIL: TestBroken/"+defect.subtest+" ", "the defect is not found:\n%s", out)
			require.NotContains(t, out, "panic:")
		})
	}
	t.Run("every subtest finds one", func(t *testing.T) {
		out := run(t.Context(), "", "^TestFake$")
		subtests := regexp.MustCompile(`--- PASS: TestFake/(\w+) `).FindAllStringSubmatch(out, -1)
		require.NotEmpty(t, subtests)
		for _, subtest := range subtests {
			require.True(t, found[subtest[1]], "no defect is planted for %s", subtest[1])
		}
	})
}
