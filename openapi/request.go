package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/netsoc/webspaced/openapi/internal/access"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 64 << 10

// requestChecker holds requests against the document: who asks, and what with.
type requestChecker struct {
	gate   *access.Gate
	limits *limiter
	fail   func(http.ResponseWriter, *http.Request, error)
	routes map[string]*routers.Route // by the pattern of the mux
}

func newRequestChecker(gate *access.Gate, limits *limiter, fail func(http.ResponseWriter, *http.Request, error)) *requestChecker {
	doc := parseDocument()
	c := &requestChecker{gate, limits, fail, make(map[string]*routers.Route)}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Security == nil {
				op.Security = &doc.Security
			}
			c.routes[method+" "+path] = &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: op}
		}
	}
	return c
}

// operation returns the ID of the operation that is served under a pattern of the mux, "other" if none is.
func (c *requestChecker) operation(pattern string) string {
	if route, ok := c.routes[pattern]; ok {
		return route.Operation.OperationID
	}
	return "other"
}

// middleware wraps one operation.
func (c *requestChecker) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, ok := c.routes[r.Pattern]
		if !ok {
			c.fail(w, r, fmt.Errorf("no operation for %q: %w", r.Pattern, errdefs.ErrInternal))
			return
		}
		// Who asks comes first: nobody without a token is told more than that.
		who := visitor(r.RemoteAddr)
		if len(*route.Operation.Security) > 0 {
			ctx, err := c.authenticate(r)
			if err != nil {
				c.fail(w, r, err)
				return
			}
			r = r.WithContext(ctx)
			actor := access.Actor(ctx)
			callOf(r).user = actor
			who = actor.ID.String()
		}
		if !slices.Contains(route.Operation.Tags, "server") {
			if err := c.limits.take(who, route.Operation.OperationID); err != nil {
				c.fail(w, r, err)
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if err := check(r, route); err != nil {
			c.fail(w, r, err)
			return
		}
		// The request has been read. A deadline for reading would end its context, however long the answer may take.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		next.ServeHTTP(w, r)
	})
}

// authenticate returns a context with the actor. The scheme's case does not count (RFC 9110 11.1).
func (c *requestChecker) authenticate(r *http.Request) (context.Context, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return nil, fmt.Errorf("one Authorization header with a bearer token is needed: %w", errdefs.ErrUnauthenticated)
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil, fmt.Errorf("the Authorization is no bearer token: %w", errdefs.ErrUnauthenticated)
	}
	return c.gate.Authenticate(r.Context(), strings.TrimLeft(token, " "))
}

func check(r *http.Request, route *routers.Route) error {
	if route.Operation.RequestBody != nil {
		kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case r.Header.Get("Content-Type") == "":
			r.Header.Set("Content-Type", "application/json")
		case err != nil || kind != "application/json":
			return statusError{fmt.Errorf("the Content-Type is not application/json: %w", errdefs.ErrInvalidArgument), http.StatusUnsupportedMediaType}
		}
	}
	params := make(map[string]string)
	for _, list := range []openapi3.Parameters{route.PathItem.Parameters, route.Operation.Parameters} {
		for _, p := range list {
			if p.Value.In == openapi3.ParameterInPath {
				params[p.Value.Name] = r.PathValue(p.Value.Name)
			}
		}
	}
	err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, // has been done
			// An option that is not given is not to be changed: its default would change it.
			SkipSettingDefaults: true,
		},
	})
	if err == nil && route.Operation.RequestBody == nil {
		// What nobody asked for is read as well, while there is a deadline for reading.
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return statusError{fmt.Errorf("the body has more than %d bytes: %w", maxBody, errdefs.ErrInvalidArgument), http.StatusRequestEntityTooLarge}
	}
	if e, ok := errors.AsType[*openapi3filter.RequestError](err); ok && e.Parameter != nil && e.Parameter.Name == "username" {
		// Nobody is called what nobody can be called.
		return fmt.Errorf("no such %s: %w", e.Parameter.Name, errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", describe(err), errdefs.ErrInvalidArgument)
}

// describe says what is wrong with a request without repeating it: the field or parameter, and the reason. An error
// comes from the document's validator or, for what only shows there (a port 8e1), from decoding the body.
func describe(err error) string {
	where, what := "the request", "missing, or not JSON"
	if e, ok := errors.AsType[*openapi3filter.RequestError](err); ok {
		where = "the body"
		if e.Parameter != nil {
			where, what = e.Parameter.Name, "this value has no place here"
		}
	}
	if e, ok := errors.AsType[*openapi3.SchemaError](err); ok {
		if field := strings.Join(e.JSONPointer(), "."); field != "" {
			where = field
		}
		return where + ": " + e.Reason
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return e.Field + ": this value has no place here"
	}
	return where + ": " + what
}
