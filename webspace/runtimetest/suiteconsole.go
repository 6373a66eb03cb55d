package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

// What the instance is to print, it is told through Exec: these need an Execer as well.
var consoleTests = []subtest{
	{"ConsoleOutput", testConsoleOutput},
	{"ConsoleInput", testConsoleInput},
	{"ConsoleStopped", testConsoleStopped},
	{"ConsoleWriteError", testConsoleWriteError},
}

// console is one that is attached.
type console struct {
	*suite
	name   string
	cancel context.CancelFunc
	ended  chan error

	mu    sync.Mutex
	shown strings.Builder
}

// attach attaches to the console of an instance in the background.
func (s *suite) attach(name string, opts webspace.ConsoleOptions) *console {
	s.Helper()
	c := &console{suite: s, name: name, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(s.ctx)
	c.cancel = cancel
	s.Cleanup(cancel)
	if opts.Stdout == nil {
		opts.Stdout = writerFunc(func(p []byte) (int, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.shown.Write(p)
		})
	}
	go func() { c.ended <- s.rt.(webspace.Consoler).Console(ctx, name, opts) }()
	return c
}

func (c *console) shows(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.shown.String(), text)
}

// until tries something again now and then, until the console shows a text.
func (c *console) until(text string, try func()) {
	c.Helper()
	defer func() {
		if c.Failed() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.Logf("the console shows %q", c.shown.String())
		}
	}()
	var last time.Time
	c.eventually("the console shows "+text, func() bool {
		select {
		case err := <-c.ended:
			require.FailNow(c, "Console has ended", "%v", err)
		default:
		}
		if time.Since(last) > 200*time.Millisecond {
			last = time.Now()
			try()
		}
		return c.shows(text)
	})
}

// print has the instance print something until it shows.
func (c *console) print(text string) {
	c.Helper()
	c.until(text, func() {
		c.exec(c.name, webspace.ExecOptions{Command: c.shell(fmt.Sprintf("echo %s >>%s", text, c.h.Console))})
	})
}

// end returns how Console ends, which is soon.
func (c *console) end(what string) error {
	c.Helper()
	return c.soon("Console "+what, func() error { return <-c.ended })
}

func testConsoleOutput(s *suite) {
	name := s.running()
	before := s.processes(name)
	for n := range 3 {
		c := s.attach(name, webspace.ConsoleOptions{})
		c.print(fmt.Sprint("printed-", n))
		c.cancel()
		require.ErrorIs(s, c.end("that is cancelled"), context.Canceled)
	}
	s.eventually("nothing is left of it", func() bool { return s.state(name).Processes <= before })

	// An end of the input is not one of the output.
	c := s.attach(name, webspace.ConsoleOptions{Stdin: strings.NewReader("")})
	c.print("printed-before")
	time.Sleep(100 * time.Millisecond)
	c.print("printed-after")
}

func testConsoleInput(s *suite) {
	if !s.h.Listens {
		s.Skip("nobody listens on the console of this image")
	}
	name := s.running()
	resize := make(chan webspace.TerminalSize)
	in, keyboard := io.Pipe()
	defer keyboard.Close()
	c := s.attach(name, webspace.ConsoleOptions{
		Stdin: in, Terminal: &webspace.Terminal{Width: 100, Height: 30, Resize: resize},
	})
	// What is typed is echoed behind a prompt.
	c.until("\ntyped", func() { go io.WriteString(keyboard, "echo typed\r") })
	for n := range 3 {
		_ = s.soon("a change of the size", func() error {
			resize <- webspace.TerminalSize{Width: 120 + n, Height: 40}
			return nil
		})
	}
	c.until("\nagain", func() { go io.WriteString(keyboard, "echo again\r") })
}

func testConsoleStopped(s *suite) {
	name := s.create("{}")
	attach := func() error {
		ctx, cancel := context.WithTimeout(s.ctx, s.h.Timeout)
		defer cancel()
		return s.rt.(webspace.Consoler).Console(ctx, name, webspace.ConsoleOptions{})
	}
	s.class(errdefs.IsFailedPrecondition, "Console", attach)
	s.start(name)
	c := s.attach(name, webspace.ConsoleOptions{})
	c.print("printed")
	s.stop(name)
	require.NoError(s, c.end("of an instance that has stopped"))
	s.class(errdefs.IsFailedPrecondition, "Console", attach)
}

func testConsoleWriteError(s *suite) {
	name := s.running()
	full := errors.New("full")
	c := s.attach(name, webspace.ConsoleOptions{
		Stdout: writerFunc(func([]byte) (int, error) { return 0, full }),
	})
	stop := make(chan struct{})
	var printing sync.WaitGroup
	printing.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				_, _ = s.rt.(webspace.Execer).Exec(s.ctx, name, webspace.ExecOptions{
					Command: s.shell("echo printed >>" + s.h.Console),
				})
			}
		}
	})
	defer printing.Wait()
	defer close(stop)
	require.ErrorIs(s, c.end("whose output can not be written"), full)
}
