package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
)

// classes maps the error classes of github.com/containerd/errdefs to HTTP status codes and to the codes of a problem,
// which tell apart what shares a status. Towards a class, a known code counts, and else the first row with the status.
var classes = []struct {
	class  error
	status int
	code   string
}{
	{errdefs.ErrInvalidArgument, http.StatusBadRequest, "invalid_argument"},
	{errdefs.ErrOutOfRange, http.StatusBadRequest, "out_of_range"},
	{errdefs.ErrUnauthenticated, http.StatusUnauthorized, "unauthenticated"},
	{errdefs.ErrPermissionDenied, http.StatusForbidden, "permission_denied"},
	{errdefs.ErrNotFound, http.StatusNotFound, "not_found"},
	{errdefs.ErrConflict, http.StatusConflict, "conflict"},
	{errdefs.ErrAlreadyExists, http.StatusConflict, "already_exists"},
	{errdefs.ErrFailedPrecondition, http.StatusConflict, "failed_precondition"},
	{errdefs.ErrAborted, http.StatusConflict, "aborted"},
	{errdefs.ErrResourceExhausted, http.StatusTooManyRequests, "resource_exhausted"},
	{errdefs.ErrNotImplemented, http.StatusNotImplemented, "not_implemented"},
	{errdefs.ErrUnavailable, http.StatusServiceUnavailable, "unavailable"},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "deadline_exceeded"},
	{context.Canceled, http.StatusServiceUnavailable, "canceled"},
	{errdefs.ErrInternal, http.StatusInternalServerError, "internal"},
	{errdefs.ErrDataLoss, http.StatusInternalServerError, "data_loss"},
	{errdefs.ErrUnknown, http.StatusInternalServerError, "unknown"},
}

// otherStatus are statuses beyond the table that the server itself answers with, or something between it and a client.
var otherStatus = map[int]error{
	http.StatusMethodNotAllowed:      errdefs.ErrInvalidArgument,
	http.StatusRequestEntityTooLarge: errdefs.ErrInvalidArgument,
	http.StatusUnsupportedMediaType:  errdefs.ErrInvalidArgument,
	http.StatusBadGateway:            errdefs.ErrUnavailable,
}

// statusError is an error with a status other than that of its class.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// classify returns the status and code for an error.
func classify(err error) (status int, code string) {
	status, code = http.StatusInternalServerError, "unknown"
	for _, c := range classes {
		// Errors may be of a class without being one of errdefs' own values: each class is an interface too.
		if errors.Is(errdefs.Resolve(err), c.class) {
			status, code = c.status, c.code
			break
		}
	}
	if e, ok := errors.AsType[statusError](err); ok {
		status = e.status
	}
	return status, code
}

// newProblem returns the problem for an error. What went wrong in the server is for its log and not for its clients.
func newProblem(err error) Problem {
	status, code := classify(err)
	message := err.Error()
	switch {
	case status == http.StatusServiceUnavailable:
		message = "something that the server needs is out of reach; try again later"
	case status == http.StatusGatewayTimeout:
		message = "that took too long; it may go on all the same"
	case status == http.StatusNotImplemented:
		message = "what runs the webspaces can not do this"
	case status >= 500:
		message = "something went wrong in the server"
	}
	// The class is in the status and the code; in the words for people it says nothing.
	for _, c := range classes {
		message = strings.TrimSuffix(message, ": "+c.class.Error())
	}
	title := http.StatusText(status)
	return Problem{Message: message, Code: &code, Status: &status, Title: &title}
}

func writeProblem(w http.ResponseWriter, p Problem) {
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	switch *p.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "5")
		}
	}
	w.WriteHeader(*p.Status)
	_, _ = w.Write(body)
}

// Error is an answer of the server that is not a success. It wraps the class of the error that the server meant: ask
// errdefs.IsNotFound(err) and its like.
type Error struct {
	Status  int    // of HTTP
	Message string // for people
	class   error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.class }

// newError returns the error that an answer stands for. The body may be anything.
func newError(status int, body []byte) *Error {
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Message == "" {
		p = Problem{Message: fmt.Sprintf("the server answered %d %s", status, http.StatusText(status))}
	}
	e := &Error{Status: status, Message: p.Message, class: errdefs.ErrUnknown}
	if class, ok := otherStatus[status]; ok {
		e.class = class
	}
	for _, c := range classes {
		if c.status == status {
			e.class = c.class
			break
		}
	}
	for _, c := range classes {
		if p.Code != nil && c.code == *p.Code {
			e.class = c.class
			break
		}
	}
	return e
}
