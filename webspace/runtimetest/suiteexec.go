package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

var execTests = []subtest{
	{"ExecOutput", testExecOutput},
	{"ExecInput", testExecInput},
	{"ExecEnvironment", testExecEnvironment},
	{"ExecUser", testExecUser},
	{"ExecUnknownCommand", testExecUnknownCommand},
	{"ExecStopped", testExecStopped},
	{"ExecCancel", testExecCancel},
	{"ExecWriteError", testExecWriteError},
	{"ExecConcurrently", testExecConcurrently},
	{"ExecTerminal", testExecTerminal},
	{"ExecSignal", testExecSignal},
}

func (s *suite) shell(script string) []string {
	return append(append([]string(nil), s.h.Shell...), script)
}

// exec runs a command to its end, which is soon.
func (s *suite) exec(name string, opts webspace.ExecOptions) (code int) {
	s.Helper()
	s.ok("Exec", func() error {
		return s.soon("Exec", func() (err error) {
			code, err = s.rt.(webspace.Execer).Exec(s.ctx, name, opts)
			return err
		})
	})
	return code
}

func testExecOutput(s *suite) {
	name := s.running()
	var stdout, stderr bytes.Buffer
	code := s.exec(name, webspace.ExecOptions{
		Command: s.shell("echo out; echo err >&2; exit 3"), Stdout: &stdout, Stderr: &stderr,
	})
	require.Equal(s, "out\n", stdout.String(), "stdout")
	require.Equal(s, "err\n", stderr.String(), "stderr")
	require.Equal(s, 3, code, "exit code")
	require.Zero(s, s.exec(name, webspace.ExecOptions{Command: s.shell("echo discarded")}))
}

func testExecInput(s *suite) {
	name := s.running()
	var stdout bytes.Buffer
	input := strings.Repeat("0123456789abcde\n", 16<<10) // 256 KiB
	code := s.exec(name, webspace.ExecOptions{
		Command: []string{"cat"}, Stdin: strings.NewReader(input), Stdout: &stdout,
	})
	require.Zero(s, code)
	require.True(s, input == stdout.String(), "%d bytes of %d came back", stdout.Len(), len(input))
	require.Zero(s, s.exec(name, webspace.ExecOptions{Command: []string{"cat"}}), "no input is an empty one")

	// A command that does not care for its input ends all the same.
	reader, writer := io.Pipe()
	defer writer.Close()
	code = s.exec(name, webspace.ExecOptions{Command: s.shell("exit 4"), Stdin: reader})
	require.Equal(s, 4, code)
}

func testExecEnvironment(s *suite) {
	name := s.running()
	var stdout bytes.Buffer
	code := s.exec(name, webspace.ExecOptions{
		Command: s.shell("printenv GREETING; pwd"),
		Env:     map[string]string{"GREETING": "hello = $world"},
		Dir:     "/",
		Stdout:  &stdout,
	})
	require.Zero(s, code)
	require.Equal(s, "hello = $world\n/\n", stdout.String())
}

func testExecUser(s *suite) {
	if !s.h.Users {
		s.Skip("commands of this runtime run as one user")
	}
	name := s.running()
	for _, user := range []uint32{0, 65534} {
		var stdout bytes.Buffer
		s.exec(name, webspace.ExecOptions{Command: []string{"id", "-u"}, User: user, Group: user, Stdout: &stdout})
		require.Equal(s, fmt.Sprintln(user), stdout.String())
	}
}

func testExecUnknownCommand(s *suite) {
	name := s.running()
	for _, command := range []string{"no-such-program", "/no/such/program", "/"} {
		require.Contains(s, []int{126, 127}, s.exec(name, webspace.ExecOptions{Command: []string{command}}), command)
	}
}

func testExecStopped(s *suite) {
	name := s.create("{}")
	run := func() error {
		_, err := s.rt.(webspace.Execer).Exec(s.ctx, name, webspace.ExecOptions{Command: []string{"cat"}})
		return err
	}
	s.class(errdefs.IsFailedPrecondition, "Exec", run)
	s.start(name)
	s.ok("Exec", run)
	s.stop(name)
	s.class(errdefs.IsFailedPrecondition, "Exec", run)
}

// processes returns how many processes an instance has once it has booted, which is when the number rests.
func (s *suite) processes(name string) (number int64) {
	s.Helper()
	var since time.Time
	s.eventually("the number of processes rests", func() bool {
		if n := s.state(name).Processes; n != number {
			number, since = n, time.Now()
		}
		return number > 0 && time.Since(since) > 300*time.Millisecond
	})
	return number
}

func testExecCancel(s *suite) {
	name := s.running()
	before := s.processes(name)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	// Cancelled once the command has said something, so that it is known to run. It is one process: what else a shell
	// would start is not the command.
	out := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	in, more := io.Pipe()
	defer more.Close()
	go more.Write([]byte("begun\n"))
	err := s.soon("Exec that is cancelled", func() error {
		_, err := s.rt.(webspace.Execer).Exec(ctx, name, webspace.ExecOptions{Command: []string{"cat"}, Stdin: in, Stdout: out})
		return err
	})
	require.ErrorIs(s, err, context.Canceled)
	s.eventually("the command is gone", func() bool { return s.state(name).Processes <= before })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func testExecWriteError(s *suite) {
	name := s.running()
	before := s.processes(name)
	out := writerFunc(func([]byte) (int, error) { return 0, errors.New("full") })
	code := 0
	err := s.soon("Exec whose output can not be written", func() (err error) {
		code, err = s.rt.(webspace.Execer).Exec(s.ctx, name, webspace.ExecOptions{Command: []string{"yes"}, Stdout: out})
		return err
	})
	require.True(s, err != nil || code != 0, "the command was killed, which is no success")
	s.eventually("the command is gone", func() bool { return s.state(name).Processes <= before })
}

func testExecConcurrently(s *suite) {
	name := s.running()
	outputs := make([]bytes.Buffer, 4)
	var group sync.WaitGroup
	for n := range outputs {
		group.Go(func() {
			_, err := s.rt.(webspace.Execer).Exec(s.ctx, name, webspace.ExecOptions{
				Command: []string{"cat"}, Stdin: strings.NewReader(fmt.Sprint("input ", n)), Stdout: &outputs[n],
			})
			if err != nil {
				s.Errorf("Exec: %v", err)
			}
		})
	}
	group.Wait()
	for n := range outputs {
		require.Equal(s, fmt.Sprint("input ", n), outputs[n].String())
	}
}

func testExecTerminal(s *suite) {
	name := s.running()
	resize := make(chan webspace.TerminalSize, 1)
	resized := false
	var stdout bytes.Buffer
	out := writerFunc(func(p []byte) (int, error) {
		stdout.Write(p)
		if !resized && strings.Contains(stdout.String(), "30 100") {
			resized = true
			resize <- webspace.TerminalSize{Width: 120, Height: 40}
		}
		return len(p), nil
	})
	code := s.exec(name, webspace.ExecOptions{
		Command:  s.shell("stty size; sleep 1; stty size; sleep 1; exit 5"),
		Stdout:   out,
		Terminal: &webspace.Terminal{Width: 100, Height: 30, Resize: resize},
	})
	require.Equal(s, 5, code)
	require.Equal(s, []string{"30", "100", "40", "120"}, strings.Fields(stdout.String()))
}

func testExecSignal(s *suite) {
	name := s.running()
	signal := make(chan int, 1)
	out := writerFunc(func(p []byte) (int, error) {
		select {
		case signal <- int(syscall.SIGKILL):
		default:
		}
		return len(p), nil
	})
	code := s.exec(name, webspace.ExecOptions{
		Command:  s.shell("echo begun; sleep 300"),
		Stdout:   out,
		Terminal: &webspace.Terminal{Width: 80, Height: 24, Signal: signal},
	})
	require.NotZero(s, code)
}
