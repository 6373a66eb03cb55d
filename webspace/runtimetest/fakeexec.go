package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// Exec implements [webspace.Execer]. Instances know these programs: "sh -c SCRIPT" where the script is commands with
// plain words separated by semicolons, echo (with ">&2" or ">>/dev/console" as the last word if need be), cat, sleep SECONDS, yes, exit CODE,
// true, false, pwd, "id -u", "stty size" and printenv NAME. Anything else is not found.
func (f *Fake) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (code int, err error) {
	err = f.do(ctx, "Exec", name, func() error {
		f.mu.Lock()
		i, err := f.find(name)
		if err == nil && i.down == nil {
			err = fmt.Errorf("instance %q is %s: %w", name, i.Status, errdefs.ErrFailedPrecondition)
		}
		if err == nil && len(opts.Command) == 0 {
			err = fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			f.mu.Unlock()
			return err
		}
		i.commands++
		p := process{ExecOptions: opts, down: i.down, print: f.printer(i)}
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			i.commands--
			f.mu.Unlock()
		}()
		if opts.Terminal != nil {
			defer p.attach()()
		}
		if p.Stdout == nil {
			p.Stdout = io.Discard
		}
		if p.Terminal != nil {
			p.Stderr = p.Stdout
		} else if p.Stderr == nil {
			p.Stderr = io.Discard
		}
		code, err = p.run(ctx, opts.Command)
		var exit exitError
		switch {
		case errors.As(err, &exit):
			code, err = int(exit), nil
		case ctx.Err() != nil:
			err = ctx.Err()
		case err != nil: // a stream failed, or the instance went down: killed
			code, err = 137, nil
		}
		return err
	})
	return code, err
}

type process struct {
	webspace.ExecOptions
	down   <-chan struct{}
	print  func(line string) // on the console
	killed chan struct{}     // by a signal

	mu   sync.Mutex
	size webspace.TerminalSize
}

// attach follows what happens to the terminal until the function it returns is called.
func (p *process) attach() (detach func()) {
	p.size = webspace.TerminalSize{Width: p.Terminal.Width, Height: p.Terminal.Height}
	p.killed = make(chan struct{})
	resize, signal, done := p.Terminal.Resize, p.Terminal.Signal, make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					resize = nil
					continue
				}
				p.mu.Lock()
				p.size = size
				p.mu.Unlock()
			case _, ok := <-signal:
				signal = nil
				if ok {
					close(p.killed)
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		group.Wait()
	}
}

type exitError int

func (e exitError) Error() string { return "exit " + strconv.Itoa(int(e)) }

var errDown = errors.New("killed, or the instance went down")

func (p *process) run(ctx context.Context, argv []string) (int, error) {
	command := argv[0][strings.LastIndexByte(argv[0], '/')+1:]
	args := argv[1:]
	out := p.Stdout
	if n := len(args); n > 0 && args[n-1] == ">&2" {
		args, out = args[:n-1], p.Stderr
	}
	if n := len(args); command == "echo" && n > 0 && args[n-1] == ">>/dev/console" {
		p.print(strings.Join(args[:n-1], " "))
		return 0, nil
	}
	line := strings.Join(args, " ")
	print := func(s string) (int, error) { _, err := io.WriteString(out, s+"\n"); return 0, err }
	switch {
	case command == "sh" && len(args) == 2 && args[0] == "-c":
		return p.script(ctx, args[1])
	case command == "echo":
		return print(line)
	case command == "cat":
		return 0, p.cat(ctx)
	case command == "sleep":
		seconds, err := strconv.ParseFloat(line, 64)
		if err != nil {
			return 1, nil
		}
		return 0, p.pause(ctx, time.Duration(seconds*float64(time.Second)))
	case command == "yes":
		for {
			if _, err := print("y"); err != nil {
				return 0, err
			}
			if err := p.pause(ctx, time.Millisecond); err != nil {
				return 0, err
			}
		}
	case command == "exit":
		code, _ := strconv.Atoi(line)
		return 0, exitError(code)
	case command == "true":
		return 0, nil
	case command == "false":
		return 1, nil
	case command == "pwd":
		if p.Dir == "" {
			return print("/")
		}
		return print(p.Dir)
	case command == "id" && line == "-u":
		return print(strconv.FormatUint(uint64(p.User), 10))
	case command == "stty" && line == "size" && p.Terminal != nil:
		p.mu.Lock()
		size := p.size
		p.mu.Unlock()
		return print(fmt.Sprint(size.Height, size.Width))
	case command == "printenv":
		value, ok := p.Env[line]
		if !ok {
			return 1, nil
		}
		return print(value)
	}
	return 127, nil
}

func (p *process) script(ctx context.Context, script string) (code int, err error) {
	for command := range strings.SplitSeq(script, ";") {
		if argv := strings.Fields(command); len(argv) > 0 {
			if code, err = p.run(ctx, argv); err != nil {
				return code, err
			}
		}
	}
	return code, nil
}

func (p *process) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.down:
		return errDown
	case <-p.killed:
		return errDown
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) cat(ctx context.Context) error {
	if p.Stdin == nil {
		return nil
	}
	gone := make(chan struct{})
	defer close(gone)
	chunks := p.input(gone)
	for {
		select {
		case chunk, ok := <-chunks:
			if !ok {
				return nil
			}
			if _, err := p.Stdout.Write(chunk); err != nil {
				return err
			}
		case <-p.down:
			return errDown
		case <-p.killed:
			return errDown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// input reads Stdin in a goroutine of its own: a Read can not be interrupted, so it may outlast the command, until whoever
// passed Stdin ends it. What it reads then is lost.
func (p *process) input(gone <-chan struct{}) <-chan []byte {
	chunks := make(chan []byte)
	go func() {
		defer close(chunks)
		buffer := make([]byte, 32<<10)
		for {
			n, err := p.Stdin.Read(buffer)
			select {
			case chunks <- bytes.Clone(buffer[:n]):
			case <-gone:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return chunks
}
