// Package openapi is the REST API of webspaced: the OpenAPI document, and the server and client generated from it.
//
// [NewHandler] serves the API on a [webspace.Manager]; [Connect] returns a client. Errors are the same on both sides:
// classes of github.com/containerd/errdefs, which one table maps to HTTP status codes and back.
package openapi

import (
	"bytes"
	_ "embed" // for the document
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"

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

// Options of [NewHandler]. The zero value of each is its default.
type Options struct {
	// Logger gets what clients are not told: the reasons of answers of 500 and above [slog.Default].
	Logger *slog.Logger
	// AllowedOrigins are the origins, such as "https://dashboard.example.org", whose web pages may use the API; "*" stands
	// for all [none].
	AllowedOrigins []string
}

// NewHandler returns a handler that serves the API: /v1 and /health. auth says who a bearer token belongs to, dir finds
// the users whose webspaces an admin asks for.
//
// The handler bounds what it reads of a request's body; time limits and the size of headers are the [http.Server]'s.
func NewHandler(manager *webspace.Manager, auth identity.Authenticator, dir identity.Directory, opts *Options) http.Handler {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
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
	return cors(slices.Clone(o.AllowedOrigins), guard(mux, fail))
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
