// Package openapi is the REST API of webspaced: the OpenAPI document, and the server and client generated from it.
//
// [NewServer] serves the API on a [webspace.Manager]; [Connect] returns a client. Errors are the same on both sides:
// classes of github.com/containerd/errdefs, which one table maps to HTTP status codes and back.
package openapi

import (
	"bytes"
	"context"
	_ "embed" // for the document
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/getkin/kin-openapi/openapi3"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

//go:generate go tool -modfile=../test/tools/go.mod oapi-codegen -config oapi-codegen.yaml api.yaml

//go:embed api.yaml
var document []byte

// Document returns the OpenAPI document, in YAML.
func Document() []byte { return bytes.Clone(document) }

// Options of [NewServer]. The zero value of each is its default.
type Options struct {
	// Logger gets a line for each request, and what clients are not told: the reasons of answers of 500 and above
	// [slog.Default].
	Logger *slog.Logger
	// AllowedOrigins are the origins, such as "https://dashboard.example.org", whose web pages may use the API; "*" stands
	// for all [none].
	AllowedOrigins []string
	// Recheck is how often the identity provider is asked whether the user of an open terminal or stream of events may
	// still use it [30 s].
	Recheck time.Duration
	// Limits bound what one user asks for.
	Limits Limits
	// Metrics is served at GET /metrics, to everybody whom it does not turn away itself: it is no part of the document
	// and asks for no token of a user [nothing].
	Metrics http.Handler
	// Observe is told of each request that has been answered, from several goroutines at a time: the operation of the
	// document, or "other", the status, and how long it took, which for what streams is as long as it was open. It must
	// not block [nobody].
	Observe func(operation string, status int, took time.Duration)
}

func (o *Options) withDefaults() Options {
	var out Options
	if o != nil {
		out = *o
	}
	if out.Logger == nil {
		out.Logger = slog.Default()
	}
	if out.Recheck <= 0 {
		out.Recheck = 30 * time.Second
	}
	out.AllowedOrigins = slices.Clone(out.AllowedOrigins)
	return out
}

// Server is an [http.Handler] that serves the API.
type Server struct {
	next     http.Handler
	sessions *sessions
	origins  origins
	leaving  *atomic.Bool
	log      *slog.Logger
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.next.ServeHTTP(w, r) }

// Shutdown ends what takes long or never ends by itself, terminals, streams of events and commands, and waits until it has
// or ctx ends. From now on there are no new ones. [http.Server.Shutdown] knows nothing of terminals and waits for streams
// for ever, so call both at the same time.
func (s *Server) Shutdown(ctx context.Context) error { return s.sessions.shutdown(ctx) }

// Unready has /readyz say from now on that no more requests should be sent here. They are answered all the same.
func (s *Server) Unready() { s.leaving.Store(true) }

// NewServer returns a server of the API, with its documentation at /swagger. auth says who a bearer token belongs to, dir
// finds the users whose webspaces an admin asks for.
//
// It bounds what it reads of a request's body; time limits and the size of headers are the [http.Server]'s.
func NewServer(manager *webspace.Manager, auth identity.Authenticator, dir identity.Directory, opts *Options) *Server {
	o := opts.withDefaults()
	fail := func(w http.ResponseWriter, r *http.Request, err error) {
		p := newProblem(err)
		if *p.Status >= 500 && r.Context().Err() == nil {
			o.Logger.Error("request failed", "method", r.Method, "route", r.Pattern, "status", *p.Status, "request_id", callOf(r).id, "error", err)
		}
		if e, ok := errors.AsType[tooMany](err); ok {
			e.setRetryAfter(w.Header())
		}
		writeProblem(w, p)
	}
	gate := access.NewGate(manager, auth, dir)
	check := newRequestChecker(gate, newLimiter(o.Limits), fail)
	s := &Server{sessions: newSessions(gate, o.Recheck, fail), origins: o.AllowedOrigins, leaving: new(atomic.Bool), log: o.Logger}
	mux := http.NewServeMux()
	refuse := func(w http.ResponseWriter, r *http.Request, err error) {
		fail(w, r, fmt.Errorf("%s: %w", describe(err), errdefs.ErrInvalidArgument))
	}
	strict := NewStrictHandlerWithOptions(handlers{gate, s.sessions, newKept[[]webspace.Image](), newKept[struct{}](), s.leaving}, nil, StrictHTTPServerOptions{RequestErrorHandlerFunc: refuse, ResponseErrorHandlerFunc: fail})
	HandlerWithOptions(strict, StdHTTPServerOptions{
		BaseRouter:  mux,
		Middlewares: []MiddlewareFunc{check.middleware},
		// Path parameters are decoded before anything else. Who asks still comes first, and the checker names the parameter.
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			check.middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { refuse(w, r, err) })).ServeHTTP(w, r)
		},
	})
	for pattern, serve := range s.raw() {
		mux.Handle(pattern, check.middleware(s.sessions.handler(serve)))
	}
	addPages(mux)
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	ended := func(string, int, time.Duration) {}
	if o.Observe != nil {
		ended = func(pattern string, status int, took time.Duration) {
			o.Observe(check.operation(pattern), status, took)
		}
	}
	s.next = accessLog(o.Logger, mux, ended, cors(s.origins, guard(mux, fail)))
	return s
}

// raw returns the operations that take the connection over or stream, by their pattern; none of them is generated.
func (s *Server) raw() map[string]rawHandler {
	return map[string]rawHandler{
		"GET /v1/webspace/{username}/exec":    s.openTerminal,
		"GET /v1/webspace/{username}/console": s.openConsole,
		"GET /v1/webspace/{username}/events":  s.followEvents,
	}
}

// parseDocument returns the document. It is a part of the program: a mistake in it is a mistake in the program.
func parseDocument() *openapi3.T {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		panic(errors.Join(errors.New("api.yaml"), err))
	}
	return doc
}
