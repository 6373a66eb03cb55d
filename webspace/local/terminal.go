//go:build linux

package local

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// openTerminal returns both ends of a new pseudo terminal. Whoever holds the first is at the keyboard.
func openTerminal() (keyboard, tty *os.File, err error) {
	keyboard, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	number := 0
	err = control(keyboard, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		_ = keyboard.Close()
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	return keyboard, tty, nil
}

// control runs an ioctl. File.Fd would do, but may take from the file its deadlines.
func control(f *os.File, ioctl func(fd int) error) (err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := conn.Control(func(fd uintptr) { err = ioctl(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

func resize(keyboard *os.File, size webspace.TerminalSize) error {
	clamp := func(n int) uint16 { return uint16(min(max(n, 0), 1<<16-1)) }
	return control(keyboard, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: clamp(size.Width), Row: clamp(size.Height)})
	})
}

func runInTerminal(cmd *exec.Cmd, opts webspace.ExecOptions, cancel context.CancelCauseFunc) error {
	keyboard, tty, err := openTerminal()
	if err != nil {
		return err
	}
	defer keyboard.Close()
	err = resize(keyboard, webspace.TerminalSize{Width: opts.Terminal.Width, Height: opts.Terminal.Height})
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.Env = append([]string{"TERM=xterm"}, cmd.Env...) // unless the caller knows better
		cmd.SysProcAttr.Setctty = true
		err = cmd.Start()
	}
	_ = tty.Close()
	if err != nil {
		return err
	}

	var group sync.WaitGroup
	ended := make(chan struct{})
	group.Go(func() { handle(opts.Terminal, keyboard, cmd.Process, ended) })
	group.Go(func() {
		if opts.Stdout == nil {
			opts.Stdout = io.Discard
		}
		_, _ = io.Copy(output{opts.Stdout, cancel}, keyboard) // ends with EIO when nobody has the terminal open
	})
	if opts.Stdin != nil {
		go func() {
			if _, err := io.Copy(keyboard, opts.Stdin); err == nil {
				_, _ = keyboard.Write([]byte{4}) // ^D
			}
		}()
	}
	err = cmd.Wait()
	close(ended)
	_ = keyboard.SetReadDeadline(time.Now().Add(drainTime))
	group.Wait()
	return err
}

// handle does what the user does with the terminal, until the command has ended.
func handle(terminal *webspace.Terminal, keyboard *os.File, p *os.Process, ended <-chan struct{}) {
	sizes, signals := terminal.Resize, terminal.Signal
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			_ = resize(keyboard, size)
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			if signal > 0 && signal <= 64 {
				_ = signalGroup(p, unix.Signal(signal))
			}
		case <-ended:
			return
		}
	}
}
