package openapi

import (
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"strings"

	"github.com/containerd/errdefs"
)

// guard answers what no operation does, and after a panic.
func guard(mux *http.ServeMux, fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v == http.ErrAbortHandler {
				panic(v)
			} else if v != nil {
				fail(w, r, fmt.Errorf("panic: %v\n%s: %w", v, debug.Stack(), errdefs.ErrInternal))
			}
		}()
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
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
