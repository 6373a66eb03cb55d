package testbed

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a test has started, and may treat badly.
type Process struct {
	binary string
	args   []string
	dir    string
	ready  func() bool
	log    *log
	cmd    *exec.Cmd
	ended  chan struct{}
}

// start starts the program and waits until it is ready.
func (p *Process) start() error {
	cmd := exec.Command(p.binary, p.args...)
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		if p.ready() {
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.New("no answer")
}

// Kill kills it, as a crash would, and waits until it is gone.
func (p *Process) Kill() {
	if p.ended == nil {
		return
	}
	p.cmd.Process.Signal(os.Kill)
	<-p.ended
}

// Restart starts it again, after killing it if it runs, and returns when it is ready.
func (p *Process) Restart(t testing.TB) {
	t.Helper()
	p.Kill()
	if err := p.start(); err != nil {
		t.Fatalf("%s does not start again: %v\n%s", p.binary, err, p.log)
	}
}

// Freeze has it do nothing, until Thaw: it keeps its connections and answers none of them.
func (p *Process) Freeze() { p.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw has it go on after Freeze.
func (p *Process) Thaw() { p.cmd.Process.Signal(syscall.SIGCONT) }
