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
	"path"
	"slices"
	"strings"
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
	// Logger gets what clients are not told: the reasons of answers of 500 and above [slog.Default].
	Logger *slog.Logger
	// AllowedOrigins are the origins, such as "https://dashboard.example.org", whose web pages may use the API; "*" stands
	// for all [none].
	AllowedOrigins []string
	// Recheck is how often the identity provider is asked whether the user of an open terminal or stream of events may
	// still use it [30 s].
	Recheck time.Duration
}

// Server is an [http.Handler] that serves the API.
type Server struct {
	next     http.Handler
	sessions *sessions
	origins  origins
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.next.ServeHTTP(w, r) }

// Shutdown ends what never ends by itself, terminals and streams of events, and waits until it has or ctx ends. From now
// on there are no new ones. [http.Server.Shutdown] knows nothing of terminals and waits for streams for ever, so call
// both at the same time.
func (s *Server) Shutdown(ctx context.Context) error { return s.sessions.shutdown(ctx) }

// NewServer returns a server of the API: /v1 and /health. auth says who a bearer token belongs to, dir finds
// the users whose webspaces an admin asks for.
//
// It bounds what it reads of a request's body; time limits and the size of headers are the [http.Server]'s.
func NewServer(manager *webspace.Manager, auth identity.Authenticator, dir identity.Directory, opts *Options) *Server {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Recheck <= 0 {
		o.Recheck = 30 * time.Second
	}
	fail := func(w http.ResponseWriter, r *http.Request, err error) {
		p := newProblem(err)
		if *p.Status >= 500 && r.Context().Err() == nil {
			o.Logger.Error("request failed", "method", r.Method, "route", r.Pattern, "status", *p.Status, "error", err)
		}
		writeProblem(w, p)
	}
	gate := access.NewGate(manager, auth, dir)
	check := newRequestChecker(gate, fail)
	mux := http.NewServeMux()
	strict := NewStrictHandlerWithOptions(handlers{gate}, nil, StrictHTTPServerOptions{
		RequestErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			fail(w, r, fmt.Errorf("%s: %w", describe(err), errdefs.ErrInvalidArgument))
		},
		ResponseErrorHandlerFunc: fail,
	})
	HandlerWithOptions(strict, StdHTTPServerOptions{
		BaseRouter:  mux,
		Middlewares: []MiddlewareFunc{check.middleware},
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			fail(w, r, fmt.Errorf("%s: %w", describe(err), errdefs.ErrInvalidArgument))
		},
	})
	s := &Server{sessions: newSessions(gate, o.Recheck, fail), origins: slices.Clone(o.AllowedOrigins)}
	for pattern, serve := range s.raw() {
		mux.Handle(pattern, check.middleware(s.sessions.handler(serve)))
	}
	s.next = cors(s.origins, guard(mux, fail))
	return s
}

// raw returns the operations that are not generated, by their pattern; oapi-codegen.yaml leaves them out.
func (s *Server) raw() map[string]rawHandler {
	return map[string]rawHandler{
		"GET /v1/webspace/{username}/exec":    notYet,
		"GET /v1/webspace/{username}/console": notYet,
	}
}

func notYet(http.ResponseWriter, *http.Request, access.Writer) error {
	return fmt.Errorf("there are no terminals yet: %w", errdefs.ErrNotImplemented)
}

// guard answers what no operation does, and after a panic.
func guard(mux *http.ServeMux, fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v == http.ErrAbortHandler {
				panic(v)
			} else if v != nil {
				fail(w, r, fmt.Errorf("panic: %v: %w", v, errdefs.ErrInternal))
			}
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		// The mux would redirect such a path to a clean one, which no client of ours asks for.
		if path.Clean(r.URL.Path) != r.URL.Path || strings.ContainsAny(r.URL.Path, "\x00\\") {
			fail(w, r, errNoPath)
			return
		}
		handler, pattern := mux.Handler(r)
		if pattern == "" {
			var answer statusOnly
			handler.ServeHTTP(&answer, r)
			if allow := answer.Header().Values("Allow"); len(allow) > 0 {
				w.Header()["Allow"] = allow
				fail(w, r, statusError{fmt.Errorf("%s is not a method here: %w", r.Method, errdefs.ErrInvalidArgument), http.StatusMethodNotAllowed})
				return
			}
			fail(w, r, errNoPath)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

var errNoPath = fmt.Errorf("no such path: %w", errdefs.ErrNotFound)

// statusOnly is a ResponseWriter that keeps the header.
type statusOnly struct{ header http.Header }

func (s *statusOnly) Header() http.Header {
	if s.header == nil {
		s.header = make(http.Header)
	}
	return s.header
}
func (s *statusOnly) Write(p []byte) (int, error) { return len(p), nil }
func (s *statusOnly) WriteHeader(int)             {}

// parseDocument returns the document. It is a part of the program: a mistake in it is a mistake in the program.
func parseDocument() *openapi3.T {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		panic(errors.Join(errors.New("api.yaml"), err))
	}
	return doc
}
