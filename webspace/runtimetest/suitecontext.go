package runtimetest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

var contextTests = []subtest{
	{"Cancelled", testCancelled},
	{"CancelDuringCreate", testCancelDuringCreate},
	{"CancelDuringStart", testCancelDuringStart},
	{"CancelDuringStop", testCancelDuringStop},
	{"HostileNames", testHostileNames},
}

// calls returns each operation on an instance.
func (s *suite) calls(name string) map[string]func() error { return s.callsContext(s.ctx, name) }

func (s *suite) callsContext(ctx context.Context, name string) map[string]func() error {
	calls := map[string]func() error{
		"List":      func() error { _, err := s.rt.List(ctx, name); return err },
		"Get":       func() error { _, err := s.rt.Get(ctx, name); return err },
		"Create":    func() error { return s.rt.Create(ctx, name, webspace.CreateOptions{Image: s.h.Image}) },
		"Delete":    func() error { return s.rt.Delete(ctx, name) },
		"Start":     func() error { return s.rt.Start(ctx, name) },
		"Stop":      func() error { return s.rt.Stop(ctx, name, 0) },
		"Restart":   func() error { return s.rt.Restart(ctx, name, 0) },
		"SetRecord": func() error { return s.rt.SetRecord(ctx, name, []byte("hostile"), "") },
		"State":     func() error { _, err := s.rt.State(ctx, name); return err },
	}
	if execer, ok := s.rt.(webspace.Execer); ok {
		calls["Exec"] = func() error {
			_, err := execer.Exec(ctx, name, webspace.ExecOptions{Command: []string{"cat"}})
			return err
		}
	}
	if consoler, ok := s.rt.(webspace.Consoler); ok {
		calls["Console"] = func() error { return consoler.Console(ctx, name, webspace.ConsoleOptions{}) }
	}
	if logger, ok := s.rt.(webspace.Logger); ok {
		calls["Log"] = func() error { _, err := logger.Log(ctx, name, 1000); return err }
		calls["ClearLog"] = func() error { return logger.ClearLog(ctx, name) }
	}
	return calls
}

func testCancelled(s *suite) {
	stopped, running := s.create("kept"), s.running()
	s.setRecord(running, "kept")
	made := s.name()
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	for _, name := range []string{stopped, running, made} {
		for op, call := range s.callsContext(ctx, name) {
			require.ErrorIs(s, s.soon(op, call), context.Canceled, op)
		}
	}
	s.class(errdefs.IsNotFound, "Get", func() error { _, err := s.rt.Get(s.ctx, made); return err })
	s.status(stopped, webspace.StatusStopped)
	s.status(running, webspace.StatusRunning)
	require.Equal(s, "kept", string(s.get(stopped).Record))
	require.Equal(s, "kept", string(s.get(running).Record))
}

// moments are when a call is cancelled: some before its work begins, some while it is under way, some when it is done.
var moments = []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond}

// interrupt runs a call and cancels it after a while. It ends soon, by itself or with the error of the context.
func (s *suite) interrupt(op string, after time.Duration, call func(context.Context) error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, after)
	defer cancel()
	err := s.soon(op+" that is cancelled", func() error { return call(ctx) })
	if err != nil && !errdefs.IsConflict(err) {
		require.ErrorIs(s, err, context.DeadlineExceeded, op)
	}
}

// usable requires an instance to be read, stopped and deleted.
func (s *suite) usable(name string) {
	s.Helper()
	s.get(name)
	s.list(name)
	s.state(name)
	s.stop(name)
	s.status(name, webspace.StatusStopped)
	s.delete(name)
}

func testCancelDuringCreate(s *suite) {
	for _, after := range moments {
		name := s.name()
		create := func(ctx context.Context) error {
			return s.rt.Create(ctx, name, webspace.CreateOptions{Image: s.h.Image, Record: []byte("{}")})
		}
		s.interrupt("Create", after, create)
		// It may still come to be. Whoever wants the instance tries again.
		if err := s.retry(s.ctx, func() error { return create(s.ctx) }); !errdefs.IsAlreadyExists(err) {
			require.NoError(s, err)
		}
		s.usable(name)
	}
}

func testCancelDuringStart(s *suite) {
	for _, after := range moments {
		name := s.create("{}")
		s.interrupt("Start", after, func(ctx context.Context) error { return s.rt.Start(ctx, name) })
		s.usable(name)
	}
}

func testCancelDuringStop(s *suite) {
	for _, after := range moments {
		name := s.running()
		s.interrupt("Stop", after, func(ctx context.Context) error { return s.rt.Stop(ctx, name, s.h.Grace) })
		s.usable(name)
	}
}

// testHostileNames asks for names that mean something else to a file system, a URL or a shell.
func testHostileNames(s *suite) {
	victim := s.running()
	s.setRecord(victim, "kept")
	before := s.list(s.h.Prefix)
	for _, name := range []string{
		"", ".", "..", "../" + victim, "./" + victim, victim + "/", "/" + victim, victim + "/state", victim + "/../" + victim,
		victim + "?project=default", victim + "#", victim + "%2f", "%2e%2e%2f" + victim, victim + ";x", victim + " ",
		victim + "\x00", victim + "\n", "*", "-" + victim, "\\" + victim, "$(id)", "ü" + victim, victim + "&x=y",
		victim + strings.Repeat("x", 64), strings.Repeat("../", 20) + "etc/passwd",
	} {
		for op, call := range s.calls(name) {
			if op == "List" {
				continue // takes a prefix
			}
			err := s.retry(s.ctx, call)
			refused := errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err)
			require.True(s, refused && !errors.Is(err, context.DeadlineExceeded), "%s of %q: %v", op, name, err)
		}
	}
	after := s.list(s.h.Prefix)
	require.Len(s, after, len(before))
	require.Equal(s, "kept", string(after[victim].Record))
	s.status(victim, webspace.StatusRunning)
}
