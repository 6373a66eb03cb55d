package lxd

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/webspace"
)

// Console implements [webspace.Consoler]. Engines let one attach to a console at a time, and do not tell the next one why
// its connection ends: Conflict stands for whatever ends it while the instance runs on. The size is told to the engine,
// but LXD 5.0 and Incus 6.0 do not pass it on to the guest's console. A goroutine stays until a Read of Stdin that was
// under way returns.
func (r *Runtime) Console(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	request := api.InstanceConsolePost{Type: "console"}
	var terminal *webspace.Terminal
	if t := opts.Terminal; t != nil {
		request.Width, request.Height = t.Width, t.Height
		terminal = &webspace.Terminal{Resize: t.Resize}
	}
	response, _, err := r.client.call(ctx, http.MethodPost, r.client.path(nil, "instances", name, "console"), request, "")
	if err != nil {
		return err
	}
	op, err := response.MetadataAsOperation()
	if err != nil {
		return fmt.Errorf("lxd: console of %s: %v: %w", name, err, errFailed)
	}
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stay, leave := context.WithCancelCause(ctx)
	s := session{client: r.client, op: op, end: cancel, kill: make(chan struct{}, 1)}
	defer s.tasks.Wait()
	defer s.outputs.Wait()
	defer cancel(nil)
	defer leave(nil)
	if err = s.attach(run, opts, terminal, r.opts.EventTimeout, stay, leave); err == nil {
		_, err = r.client.wait(run, op.ID)
	}
	if err == nil {
		defer time.AfterFunc(r.opts.CallTimeout, func() { cancel(nil) }).Stop()
		s.outputs.Wait()
	}
	switch cause := context.Cause(run); {
	case ctx.Err() != nil:
		return fmt.Errorf("lxd: %w", ctx.Err())
	case stay.Err() != nil:
		return fmt.Errorf("lxd: console of %s: %w", name, context.Cause(stay))
	case cause != nil:
		return fmt.Errorf("lxd: console of %s: %w", name, cause)
	case err != nil:
		return err
	}
	return r.ended(ctx, name) // what an operation fails with says less
}

// lag is how long an engine may still call an instance running whose console has ended with it.
const lag = time.Second

// ended says why a console has: because its instance has, or for whatever reason.
func (r *Runtime) ended(ctx context.Context, name string) error {
	for deadline := time.Now().Add(lag); ; {
		i, err := r.Get(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return err
		case i.Status != webspace.StatusRunning:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("lxd: the console of %s was lost, or somebody else is attached to it: %w", name, errdefs.ErrConflict)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("lxd: %w", ctx.Err())
		}
	}
}

// detachTime is how long the engine gets to say goodbye.
const detachTime = 5 * time.Second

// attach connects the streams of a console, and sees to it that they end when stay does.
func (s *session) attach(ctx context.Context, opts webspace.ConsoleOptions, terminal *webspace.Terminal, timeout time.Duration,
	stay context.Context, leave context.CancelCauseFunc) error {
	if err := s.control(ctx, terminal, timeout); err != nil {
		return err
	}
	conn, err := s.dial(ctx, "0")
	if err != nil {
		return err
	}
	var stdout io.Writer
	if opts.Stdout != nil {
		stdout = ending{opts.Stdout, leave}
	}
	s.receive(conn, stdout)
	if opts.Stdin != nil {
		go typed(conn, opts.Stdin)
	}
	received := make(chan struct{})
	s.tasks.Go(func() {
		s.outputs.Wait()
		close(received)
	})
	s.tasks.Go(func() {
		<-stay.Done()
		// The order matters. When the control connection is lost, LXD writes to the other one, even while another of its
		// goroutines does, which ends the engine. A goodbye first makes that rare; on a console that prints without
		// a pause LXD 5.0.2 has been seen to end all the same.
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		select {
		case <-received:
		case <-time.After(detachTime):
		case <-ctx.Done():
		}
		s.end(nil)
	})
	return nil
}

// typed copies what is typed to a console. Its end is not told: the engine would take it for that of the connection.
func typed(conn *websocket.Conn, stdin io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buffer)
		if n > 0 && conn.WriteMessage(websocket.BinaryMessage, buffer[:n]) != nil || err != nil {
			return
		}
	}
}

// ending ends a session when it can not be written.
type ending struct {
	io.Writer
	end context.CancelCauseFunc
}

func (e ending) Write(p []byte) (int, error) {
	n, err := e.Writer.Write(p)
	if err != nil {
		e.end(err)
	}
	return n, err
}
