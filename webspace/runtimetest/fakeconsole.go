package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// fakeConsole is one that is attached to an instance.
type fakeConsole struct{ lines chan string }

// Console implements [webspace.Consoler]. What is typed is echoed, and each line is run as [Fake.Exec] runs a script.
// Any number can attach to one console; each has a shell of its own. Who reads too slowly misses lines.
func (f *Fake) Console(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
	return f.do(ctx, "Console", name, func() error {
		console := &fakeConsole{lines: make(chan string, 64)}
		f.mu.Lock()
		i, err := f.find(name)
		if err == nil && i.down == nil {
			err = fmt.Errorf("instance %q is %s: %w", name, i.Status, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			f.mu.Unlock()
			return err
		}
		i.consoles[console] = true
		p := process{down: i.down, print: f.printer(i)}
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			delete(i.consoles, console)
			f.mu.Unlock()
		}()
		p.Stdin, p.Stdout, p.Stderr = opts.Stdin, opts.Stdout, opts.Stdout
		if p.Stdout == nil {
			p.Stdout, p.Stderr = io.Discard, io.Discard
		}
		if opts.Terminal != nil {
			terminal := *opts.Terminal
			terminal.Signal = nil
			p.Terminal = &terminal
			defer p.attach()()
		}
		err = p.shell(ctx, console.lines)
		switch {
		case errors.Is(err, errDown):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return err
	})
}

// shell runs what is typed, and shows what is printed.
func (p *process) shell(ctx context.Context, lines <-chan string) error {
	gone := make(chan struct{})
	defer close(gone)
	var typed <-chan []byte
	if p.Stdin != nil {
		typed = p.input(gone)
	}
	line := ""
	for {
		select {
		case text := <-lines:
			if _, err := io.WriteString(p.Stdout, text); err != nil {
				return err
			}
		case chunk, ok := <-typed:
			if !ok {
				typed = nil
				continue
			}
			text := strings.ReplaceAll(string(chunk), "\r", "\n")
			if _, err := io.WriteString(p.Stdout, text); err != nil {
				return err
			}
			commands := strings.Split(line+text, "\n")
			line = commands[len(commands)-1]
			for _, command := range commands[:len(commands)-1] {
				_, err := p.script(ctx, command)
				if _, exit := errors.AsType[exitError](err); err != nil && !exit { // after exit comes the next shell
					return err
				}
			}
		case <-p.down:
			return errDown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// print adds a line to the console and its log, of which the last 64 KiB are kept.
func (i *fakeInstance) print(format string, args ...any) {
	line := fmt.Sprintf(format+"\n", args...)
	for console := range i.consoles {
		select {
		case console.lines <- line:
		default:
		}
	}
	i.log = append(i.log, line...)
	if over := len(i.log) - 64<<10; over > 0 {
		i.log = bytes.Clone(i.log[over:])
	}
}

// Print has an instance print a line on its console. False: there is no such instance.
func (f *Fake) Print(name, line string) bool {
	return f.with(name, func(i *fakeInstance) { i.print("%s", line) })
}

// printer returns a function that prints on the console of an instance.
func (f *Fake) printer(i *fakeInstance) func(string) {
	return func(line string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		i.print("%s", line)
	}
}
