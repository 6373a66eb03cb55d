package openapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/openapi/internal/access"
)

// rawHandler serves an operation that streams its answer or takes the connection over, after the request has been held
// against the document and its actor against the webspace. The context of r ends, with the reason as its cause, when the
// client leaves, the token expires, the actor loses access, or the server shuts down: then it says goodbye and returns
// soon. An error is answered as a problem, so one is only returned before anything was written.
type rawHandler func(w http.ResponseWriter, r *http.Request, writer access.Writer) error

const (
	maxSessions    = 16 // of one webspace, commands included
	maxCommands    = 4  // of one webspace
	maxAllCommands = 64 // of all webspaces: each may hold two MiB of output
	maxSession     = 12 * time.Hour
)

// Why sessions end.
var (
	errTooLong  = fmt.Errorf("it was open for %v: %w", maxSession, context.DeadlineExceeded)
	errShutdown = fmt.Errorf("the server is shutting down: %w", errdefs.ErrUnavailable)
)

// sessions are the requests of raw handlers, and the commands without a terminal, that are under way.
type sessions struct {
	gate    *access.Gate
	recheck time.Duration
	fail    func(http.ResponseWriter, *http.Request, error)

	ctx context.Context // ends with the server
	end context.CancelCauseFunc

	mu          sync.Mutex
	closed      bool
	open        map[identity.UserID]int
	commands    map[identity.UserID]int
	allCommands int
	all         sync.WaitGroup
}

func newSessions(gate *access.Gate, recheck time.Duration, fail func(http.ResponseWriter, *http.Request, error)) *sessions {
	s := &sessions{gate: gate, recheck: recheck, fail: fail, open: make(map[identity.UserID]int), commands: make(map[identity.UserID]int)}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	return s
}

// handler serves one operation whose path has a username.
func (s *sessions) handler(serve rawHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.serve(w, r, serve); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *sessions) serve(w http.ResponseWriter, r *http.Request, serve rawHandler) error {
	if r.Method != http.MethodGet { // a mux takes HEAD for GET
		return statusError{fmt.Errorf("%s is not a method here: %w", r.Method, errdefs.ErrInvalidArgument), http.StatusMethodNotAllowed}
	}
	return s.run(r.Context(), r.PathValue("username"), s.enter, func(ctx context.Context, writer access.Writer) error {
		return serve(w, r.WithContext(ctx), writer)
	})
}

// command calls run as a session that counts as a command.
func (s *sessions) command(ctx context.Context, username string, run func(context.Context, access.Writer) error) error {
	return s.run(ctx, username, s.enterCommand, run)
}

// run calls do with the context of a session, which ends as that of a [rawHandler] does.
func (s *sessions) run(ctx context.Context, username string, enter func(identity.UserID) (func(), error), do func(context.Context, access.Writer) error) error {
	writer, ctx, stop, err := s.gate.Session(ctx, username, s.recheck)
	if err != nil {
		return err
	}
	defer stop()
	leave, err := enter(writer.Owner())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeoutCause(ctx, maxSession, errTooLong)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(s.ctx, func() { end(context.Cause(s.ctx)) })()
	err = do(ctx, writer)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// enter counts a session of a webspace.
func (s *sessions) enter(owner identity.UserID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enterLocked(owner)
}

func (s *sessions) enterLocked(owner identity.UserID) (leave func(), err error) {
	switch {
	case s.closed:
		return nil, errShutdown
	case s.open[owner] >= maxSessions:
		return nil, fmt.Errorf("this webspace has %d terminals, streams and commands open, which is the limit: %w", maxSessions, errdefs.ErrResourceExhausted)
	}
	s.open[owner]++
	s.all.Add(1)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[owner]--; s.open[owner] == 0 {
			delete(s.open, owner)
		}
		s.all.Done()
	}, nil
}

// enterCommand counts a session of a webspace that is a command.
func (s *sessions) enterCommand(owner identity.UserID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.commands[owner] >= maxCommands:
		return nil, fmt.Errorf("this webspace runs %d commands, which is the limit: %w", maxCommands, errdefs.ErrResourceExhausted)
	case s.allCommands >= maxAllCommands:
		return nil, fmt.Errorf("too many commands are running; come again in a moment: %w", errdefs.ErrResourceExhausted)
	}
	leaveSession, err := s.enterLocked(owner)
	if err != nil {
		return nil, err
	}
	s.commands[owner]++
	s.allCommands++
	return func() {
		s.mu.Lock()
		s.allCommands--
		if s.commands[owner]--; s.commands[owner] == 0 {
			delete(s.commands, owner)
		}
		s.mu.Unlock()
		leaveSession()
	}, nil
}

// shutdown lets nobody in any more, tells who is in to leave, and waits for them.
func (s *sessions) shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end(errShutdown)
	left := make(chan struct{})
	go func() { s.all.Wait(); close(left) }()
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("sessions are still open"), ctx.Err())
	}
}
