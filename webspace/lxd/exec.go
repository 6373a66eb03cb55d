package lxd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/lxc/lxd/shared/api"
	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// Exec implements [webspace.Execer]. Output goes straight to the writers; nothing of it is kept here or by the engine. A
// writer that blocks holds up Exec, and a goroutine stays until a Read of Stdin that was under way returns.
//
// LXD 5.0 may drop the last few kilobytes of a terminal whose command ends while it prints much; without a terminal, and in
// Incus, nothing is lost.
//
// What is killed is the command. Processes that it started and that do not die with it stay in the instance.
func (r *Runtime) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
	if err := checkName(name); err != nil {
		return -1, err
	}
	if len(opts.Command) == 0 {
		return -1, fmt.Errorf("lxd: no command: %w", errdefs.ErrInvalidArgument)
	}
	request := api.InstanceExecPost{
		Command:     opts.Command,
		WaitForWS:   true,
		Environment: opts.Env,
		User:        opts.User,
		Group:       opts.Group,
		Cwd:         opts.Dir,
	}
	if t := opts.Terminal; t != nil {
		request.Interactive, request.Width, request.Height = true, t.Width, t.Height
	}
	response, _, err := r.client.call(ctx, http.MethodPost, r.client.path(nil, "instances", name, "exec"), request, "")
	if err != nil {
		return -1, err
	}
	op, err := response.MetadataAsOperation()
	if err != nil {
		return -1, fmt.Errorf("lxd: exec in %s: %v: %w", name, err, errFailed)
	}

	run, cancel := context.WithCancelCause(ctx)
	s := session{client: r.client, op: op, end: cancel, kill: make(chan struct{}, 2)}
	// The engine kills the command when the control connection is lost, which it is when run ends.
	defer s.tasks.Wait()
	defer s.outputs.Wait()
	defer cancel(nil)
	if err = s.connect(run, opts, r.opts.EventTimeout); err == nil {
		op, err = r.client.wait(run, op.ID)
	}
	switch {
	case ctx.Err() != nil:
		return -1, fmt.Errorf("lxd: %w", ctx.Err())
	case run.Err() != nil:
		// Whatever was under way fails because run has ended, which is not the caller's doing.
		return -1, fmt.Errorf("lxd: exec in %s: %w", name, context.Cause(run))
	}
	if err == nil {
		// The engine has sent all output by now.
		defer time.AfterFunc(r.opts.CallTimeout, func() { cancel(nil) }).Stop()
		s.outputs.Wait()
		if code, ok := op.Metadata["return"].(float64); ok && code >= 0 {
			return int(code), nil
		}
		err = r.client.classify(ctx, operationError(op.Err))
	}
	switch {
	case errors.Is(err, errNoCommand):
		return 127, nil
	case errors.Is(err, errNotExecutable):
		return 126, nil
	}
	return -1, err
}

// session is a running command's connections.
type session struct {
	client  *client
	op      *api.Operation
	end     context.CancelCauseFunc
	kill    chan struct{} // a value in it: the command has to be killed; each output sends at most one
	tasks   sync.WaitGroup
	outputs sync.WaitGroup
}

// connect connects all streams. The engine starts the command with the last one.
func (s *session) connect(ctx context.Context, opts webspace.ExecOptions, timeout time.Duration) error {
	if err := s.control(ctx, opts.Terminal, timeout); err != nil {
		return err
	}
	in, err := s.dial(ctx, "0")
	if err != nil {
		return err
	}
	if opts.Terminal != nil {
		s.receive(in, opts.Stdout)
	} else {
		for fd, w := range map[string]io.Writer{"1": opts.Stdout, "2": opts.Stderr} {
			out, err := s.dial(ctx, fd)
			if err != nil {
				return err
			}
			s.receive(out, w)
		}
		// Nobody reads from this one. It has to be read for the engine's pings and the end.
		s.tasks.Go(func() {
			for {
				if _, _, err := in.NextReader(); err != nil {
					return
				}
			}
		})
	}
	switch {
	case opts.Stdin != nil:
		go send(in, opts.Stdin)
	case opts.Terminal == nil:
		in.WriteMessage(websocket.TextMessage, nil)
	}
	return nil
}

// control connects the stream that says what happens to the terminal, and by whose loss the engine knows that we are gone.
func (s *session) control(ctx context.Context, terminal *webspace.Terminal, timeout time.Duration) error {
	control, err := s.dial(ctx, "control")
	if err != nil {
		return err
	}
	wait := keepAlive(ctx, control, timeout, func() {})
	s.tasks.Go(wait)
	s.tasks.Go(func() {
		for {
			if _, _, err := control.NextReader(); err != nil {
				// It is closed when the command has ended, but silent only when the engine is gone.
				if failure, ok := errors.AsType[net.Error](err); ok && failure.Timeout() {
					s.end(fmt.Errorf("no answer within %v: %w", timeout, errdefs.ErrUnavailable))
				}
				return
			}
		}
	})
	s.tasks.Go(func() { s.steer(ctx, control, terminal) })
	return nil
}

func (s *session) dial(ctx context.Context, fd string) (*websocket.Conn, error) {
	fds, _ := s.op.Metadata["fds"].(map[string]any)
	secret, ok := fds[fd].(string)
	if !ok {
		return nil, fmt.Errorf("lxd: the engine offers no stream %s: %w", fd, errFailed)
	}
	return s.client.websocket(ctx, s.client.path(url.Values{"secret": {secret}}, "operations", s.op.ID, "websocket"))
}

// steer sends what happens to the terminal and kills the command, until ctx ends.
func (s *session) steer(ctx context.Context, control *websocket.Conn, terminal *webspace.Terminal) {
	var resize <-chan webspace.TerminalSize
	var signals <-chan int
	if terminal != nil {
		resize, signals = terminal.Resize, terminal.Signal
	}
	for {
		var message api.InstanceExecControl
		select {
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			message.Command = "window-resize"
			message.Args = map[string]string{"width": strconv.Itoa(size.Width), "height": strconv.Itoa(size.Height)}
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			message.Command, message.Signal = "signal", signal
		case <-s.kill:
			message.Command, message.Signal = "signal", int(unix.SIGKILL)
		case <-ctx.Done():
			return
		}
		if control.WriteJSON(message) != nil {
			// The command has ended, or the connection is lost; both show elsewhere. Go on for those who send.
			continue
		}
	}
}

// receive copies a stream to w until it ends. If w fails, the rest is discarded and the command killed.
func (s *session) receive(conn *websocket.Conn, w io.Writer) {
	if w == nil {
		w = io.Discard
	}
	s.outputs.Go(func() {
		buffer := make([]byte, 32<<10)
		for {
			kind, message, err := conn.NextReader()
			if err != nil || kind == websocket.TextMessage {
				// The engine sends an empty text at the end, and then waits for this if it also reads from here.
				conn.Close()
				return
			}
			for {
				n, err := message.Read(buffer)
				if n > 0 {
					if _, failure := w.Write(buffer[:n]); failure != nil {
						w = io.Discard
						s.kill <- struct{}{}
					}
				}
				if err != nil {
					break
				}
			}
		}
	})
}

// send copies stdin to the command.
func send(conn *websocket.Conn, stdin io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buffer)
		if n > 0 && conn.WriteMessage(websocket.BinaryMessage, buffer[:n]) != nil {
			return
		}
		if err != nil {
			conn.WriteMessage(websocket.TextMessage, nil)
			return
		}
	}
}
