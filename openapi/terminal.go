package openapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"

	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

// How long the client of a terminal may take.
const (
	firstTimeout   = 10 * time.Second // for its first message
	pingInterval   = 30 * time.Second
	pongTimeout    = 60 * time.Second // for any sign of life
	writeTimeout   = 10 * time.Second // to read one message of ours
	endTimeout     = time.Second      // to read the message that is under way when the session ends
	goodbyeTimeout = 5 * time.Second  // to answer our goodbye, so that it has read all before
)

// maxSignals is how many signals wait for a command that takes none.
const maxSignals = 16

// errLeft is why a session ends when its client does.
var errLeft = errors.New("the client has left")

// command is what runs on a terminal.
type command struct {
	width, height int
	run           func(context.Context, *terminal, *webspace.Terminal) (reason string, err error)
	change        func(message []byte) (change, error)
}

// openTerminal runs an interactive command.
func (s *Server) openTerminal(w http.ResponseWriter, r *http.Request, writer access.Writer) error {
	return s.serveTerminal(w, r, writer, func(first []byte) (command, error) {
		opts, err := decodeExec(first)
		if err != nil {
			return command{}, err
		}
		return command{opts.Terminal.Width, opts.Terminal.Height, func(ctx context.Context, t *terminal, size *webspace.Terminal) (string, error) {
			opts.Stdin, opts.Stdout, opts.Terminal = t.input, t, size
			code, err := writer.Exec(ctx, opts)
			return strconv.Itoa(code), err
		}, decodeExecChange}, nil
	})
}

// openConsole attaches to the console.
func (s *Server) openConsole(w http.ResponseWriter, r *http.Request, writer access.Writer) error {
	return s.serveTerminal(w, r, writer, func(first []byte) (command, error) {
		size, err := decodeConsole(first)
		if err != nil {
			return command{}, err
		}
		return command{size.Width, size.Height, func(ctx context.Context, t *terminal, size *webspace.Terminal) (string, error) {
			return "", writer.Console(ctx, webspace.ConsoleOptions{Stdin: t.input, Stdout: t, Terminal: size})
		}, decodeConsoleChange}, nil
	})
}

// serveTerminal serves a websocket from its handshake to its goodbye. open learns from the first message what to run.
func (s *Server) serveTerminal(w http.ResponseWriter, r *http.Request, writer access.Writer, open func(first []byte) (command, error)) error {
	if !websocket.IsWebSocketUpgrade(r) {
		return fmt.Errorf("this is a websocket, and the request none: %w", errdefs.ErrInvalidArgument)
	}
	if !s.origins.allow(r) {
		return fmt.Errorf("pages of %.128q may not open terminals: %w", r.Header.Get("Origin"), errdefs.ErrPermissionDenied)
	}
	if _, err := writer.Get(r.Context()); err != nil {
		return err
	}
	conn, err := upgrade(w, r)
	if conn == nil {
		return err
	}
	defer conn.Close()
	t := newTerminal(r.Context(), conn)
	reason, err := t.serve(open)
	if errors.Is(err, errLeft) {
		s.log.Debug("the client of a terminal has left", "request_id", callOf(r).id)
	} else if status, _ := classify(err); err != nil && status >= 500 && context.Cause(r.Context()) == nil {
		s.log.Error("terminal failed", "route", r.Pattern, "request_id", callOf(r).id, "error", err)
	}
	t.goodbye(reason, err)
	return nil
}

// upgrade makes a websocket of a request. If it fails when nothing can be answered any more, both are nil.
func upgrade(w http.ResponseWriter, r *http.Request) (conn *websocket.Conn, err error) {
	upgrader := websocket.Upgrader{
		CheckOrigin: func(*http.Request) bool { return true }, // has been done
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, reason error) {
			class := error(errdefs.ErrInvalidArgument)
			if status >= 500 {
				class = errdefs.ErrInternal
			}
			err = fmt.Errorf("%w: %w", reason, class)
		},
	}
	conn, _ = upgrader.Upgrade(w, r, nil)
	return conn, err
}

// terminal is a session on a websocket. It is what the command writes its output to.
type terminal struct {
	conn   *websocket.Conn
	ctx    context.Context
	end    context.CancelCauseFunc
	input  *input                     // what the client types
	resize chan webspace.TerminalSize // only the last one waits
	signal chan int
	tasks  sync.WaitGroup
}

func newTerminal(ctx context.Context, conn *websocket.Conn) *terminal {
	t := &terminal{conn: conn, resize: make(chan webspace.TerminalSize, 1), signal: make(chan int, maxSignals), input: newInput()}
	t.ctx, t.end = context.WithCancelCause(ctx)
	return t
}

// serve returns the reason of a good end, or what went wrong.
func (t *terminal) serve(open func(first []byte) (command, error)) (reason string, err error) {
	defer t.end(nil)
	defer t.input.end(io.EOF) // a command that is done reads no more
	c, err := t.first(open)
	if err != nil {
		t.end(err)
	}
	t.tasks.Go(func() { t.read(c.change) })
	if err != nil {
		return "", err
	}
	// A client that does not read does not hold up the end.
	defer context.AfterFunc(t.ctx, func() { _ = t.conn.NetConn().SetWriteDeadline(time.Now().Add(endTimeout)) })()
	t.tasks.Go(t.ping)
	reason, err = c.run(t.ctx, t, &webspace.Terminal{Width: c.width, Height: c.height, Resize: t.resize, Signal: t.signal})
	if cause := context.Cause(t.ctx); cause != nil {
		err = cause
	}
	return reason, err
}

// first waits for the first message.
func (t *terminal) first(open func(first []byte) (command, error)) (command, error) {
	t.conn.SetReadLimit(maxTerminalMessage)
	_ = t.conn.SetReadDeadline(time.Now().Add(firstTimeout))
	defer context.AfterFunc(t.ctx, func() { _ = t.conn.SetReadDeadline(time.Now()) })()
	kind, message, err := t.conn.ReadMessage()
	switch failure, ok := errors.AsType[net.Error](err); {
	case t.ctx.Err() != nil:
		return command{}, context.Cause(t.ctx)
	case ok && failure.Timeout():
		return command{}, unacceptable("there was no first message within %v", firstTimeout)
	case errors.Is(err, websocket.ErrReadLimit):
		return command{}, errTooLarge
	case err != nil:
		return command{}, errLeft
	case kind != websocket.TextMessage:
		return command{}, unacceptable("the first message is not text")
	}
	return open(message)
}

// read takes what the client sends, until there is no more. A command that does not read its input holds the client up.
func (t *terminal) read(change func([]byte) (change, error)) {
	t.conn.SetPongHandler(func(string) error { return t.conn.SetReadDeadline(time.Now().Add(pongTimeout)) })
	for {
		_ = t.conn.SetReadDeadline(time.Now().Add(pongTimeout))
		kind, message, err := t.conn.NextReader()
		if err == nil {
			err = t.take(kind, message, change)
		}
		tooLarge := errors.Is(err, websocket.ErrReadLimit)
		switch {
		case err == nil:
			continue
		case tooLarge:
			err = errTooLarge
		case !errdefs.IsInvalidArgument(err):
			err = errLeft
		}
		t.end(err)
		t.input.end(err)
		if tooLarge { // what is not read would undo what was written
			_, _ = io.Copy(io.Discard, t.conn.NetConn())
		}
		if tooLarge || errors.Is(err, errLeft) {
			return
		}
	}
}

var errTooLarge = unacceptable("a message has more than %d bytes", maxTerminalMessage)

// take takes one message. When the session has ended, only the goodbye is of interest any more.
func (t *terminal) take(kind int, message io.Reader, change func([]byte) (change, error)) error {
	data, err := io.ReadAll(message)
	switch {
	case err != nil || t.ctx.Err() != nil:
		return err
	case kind == websocket.TextMessage:
		return t.apply(data, change)
	}
	return t.input.add(t.ctx, data)
}

// apply does what a text message says.
func (t *terminal) apply(message []byte, decode func([]byte) (change, error)) error {
	c, err := decode(message)
	if err != nil {
		return err
	}
	if c.resize != nil {
		select {
		case <-t.resize:
		default:
		}
		t.resize <- *c.resize // nobody else sends
		return nil
	}
	select {
	case t.signal <- c.signal:
	default: // as with those that wait in a kernel: more of them say no more
	}
	return nil
}

// ping asks for signs of life.
func (t *terminal) ping() {
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.ctx.Done():
			return
		}
		err := t.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout))
		// A message under way may keep it waiting, and has a deadline of its own.
		if failure, ok := errors.AsType[net.Error](err); err != nil && !(ok && failure.Timeout()) {
			t.end(errLeft)
		}
	}
}

// Write sends the client what the command prints. A client that does not read it holds the command up, for a while.
func (t *terminal) Write(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	_ = t.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := t.conn.WriteMessage(websocket.BinaryMessage, p); err != nil {
		t.end(errLeft)
		return 0, err
	}
	return len(p), nil
}

// goodbye tells the client how it ended, and lets go of everything.
func (t *terminal) goodbye(reason string, err error) {
	code := websocket.CloseNormalClosure
	if err != nil {
		code, reason = closeCode(err)
	}
	_ = t.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, shorten(reason)), time.Now().Add(goodbyeTimeout))
	defer time.AfterFunc(goodbyeTimeout, func() { _ = t.conn.Close() }).Stop()
	t.tasks.Wait()
}

// closeCode returns the code and reason with which a websocket is closed because of an error.
func closeCode(err error) (code int, reason string) {
	switch {
	case errors.Is(err, errShutdown):
		return websocket.CloseGoingAway, errShutdown.Error()
	case errors.Is(err, errTooLong):
		return websocket.ClosePolicyViolation, errTooLong.Error()
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return websocket.ClosePolicyViolation, newProblem(err).Message
	}
	return websocket.CloseInternalServerErr, newProblem(err).Message
}

// maxReason is how many bytes of a close frame are left for its reason (RFC 6455 5.5).
const maxReason = 123

// shorten makes a reason fit, in valid UTF-8.
func shorten(reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	return reason
}
