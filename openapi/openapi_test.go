package openapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var accounts = []static.Account{
	{User: identity.User{ID: 1000, Username: "alice"}, Token: "alice-token"},
	{User: identity.User{ID: 1001, Username: "bob"}, Token: "bob-token"},
	{User: identity.User{ID: 1, Username: "admin", Admin: true}, Token: "admin-token"},
}

// provider is an identity provider whose tokens may have claims behind a semicolon: "alice-token;exp=1", "alice-token;aud=shop".
type provider struct{ *static.Provider }

func (p provider) Authenticate(ctx context.Context, token string) (identity.User, error) {
	token, claim, _ := strings.Cut(token, ";")
	user, err := p.Provider.Authenticate(ctx, token)
	name, value, _ := strings.Cut(claim, "=")
	switch {
	case err != nil:
		return identity.User{}, err
	case name == "aud" && value != "webspaced":
		return identity.User{}, fmt.Errorf("the token is for %q: %w", value, errdefs.ErrUnauthenticated)
	case name == "exp":
		seconds, err := strconv.ParseInt(value, 10, 64)
		if user.Expires = time.Unix(seconds, 0); err != nil || user.Expires.Before(time.Now()) {
			return identity.User{}, fmt.Errorf("the token has expired: %w", errdefs.ErrUnauthenticated)
		}
	}
	return user, nil
}

// api is the API over a Manager over a fake runtime. Its answers are held against the document.
type api struct {
	http.Handler
	manager *webspace.Manager
	server  *openapi.Server
	router  routers.Router
	log     *lockedBuffer

	mu   sync.Mutex
	seen map[string]bool // "getState 200": what has been answered
}

func newAPI(t testing.TB, opts *runtimetest.FakeOptions) *api {
	t.Helper()
	runtime := runtimetest.NewFake(opts)
	t.Cleanup(func() { require.NoError(t, runtime.Close()) })
	return newAPIOn(t, runtime, nil)
}

// newAPIOn has a Manager to which every instance that runs is ready and every domain its user's.
func newAPIOn(t testing.TB, runtime webspace.Runtime, opts *openapi.Options) *api {
	t.Helper()
	users := newUsers(t)
	router, err := newRouter()
	require.NoError(t, err)
	a := &api{router: router, log: new(lockedBuffer), seen: make(map[string]bool)}
	log := slog.New(slog.NewTextHandler(a.log, nil))
	a.manager, err = webspace.NewManager(runtime, users, "localhost", &webspace.Options{
		Logger: log, Defaults: webspace.Config{HTTPPort: 8080}, StopGrace: time.Second,
		Probe: func(context.Context, netip.AddrPort) error { return nil },
		VerifyDomain: func(_ context.Context, _ identity.UserID, domain string) error {
			if strings.HasPrefix(domain, "unproven.") {
				return fmt.Errorf("domain %s has no TXT record: %w", domain, errdefs.ErrInvalidArgument)
			}
			return nil
		},
		MaxDomains: 3, Ports: webspace.PortRange{First: 60000, Last: 60004, Max: 3},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.manager.Run(ctx) })
	if opts == nil {
		opts = &openapi.Options{Limits: openapi.Limits{Rate: -1, ExpensiveRate: -1}}
	}
	if opts.Logger == nil {
		opts.Logger = log
	}
	server := openapi.NewServer(a.manager, users, users, opts)
	a.Handler, a.server = server, server
	t.Cleanup(func() {
		require.NoError(t, server.Shutdown(context.Background()))
		cancel()
		wg.Wait()
		require.NoError(t, a.manager.Close())
	})
	return a
}

func newUsers(t testing.TB) provider {
	t.Helper()
	users, err := static.New(accounts)
	require.NoError(t, err)
	return provider{users}
}

// The validator of answers reads pages and streams as they are.
var plainBodies = sync.OnceFunc(func() {
	for _, kind := range []string{"text/html", "text/event-stream"} {
		openapi3filter.RegisterBodyDecoder(kind, openapi3filter.RegisteredBodyDecoder("text/plain"))
	}
})

var newRouter = sync.OnceValues(func() (routers.Router, error) {
	plainBodies()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Document())
	if err == nil {
		err = doc.Validate(context.Background(), openapi3.EnableExamplesValidation())
	}
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// leaving is a client that goes away as soon as a stream begins.
type leaving struct {
	*httptest.ResponseRecorder
	leave func()
}

func (l leaving) Flush() { l.ResponseRecorder.Flush(); l.leave() }

// anyOperation are the statuses that every operation may answer with; the document says so once, in its description.
var anyOperation = map[int]bool{413: true, 415: true, 500: true, 504: true}

// do sends a request as it is, and holds the answer against the document if the document knows the operation.
func (a *api) do(t testing.TB, req *http.Request) *http.Response {
	t.Helper()
	rec := httptest.NewRecorder()
	ctx, leave := context.WithCancel(req.Context())
	defer leave()
	a.ServeHTTP(leaving{rec, leave}, req.WithContext(ctx))
	resp := rec.Result()
	body := rec.Body.Bytes()
	if resp.StatusCode >= 400 {
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		require.Contains(t, string(body), `"message":"`)
	}
	route, params, err := a.router.FindRoute(req)
	if err != nil || anyOperation[resp.StatusCode] {
		return resp
	}
	a.mu.Lock()
	a.seen[route.Operation.OperationID+" "+strconv.Itoa(resp.StatusCode)] = true
	a.mu.Unlock()
	require.NoError(t, openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}), "%s %s: %d %s", req.Method, req.URL.Path, resp.StatusCode, body)
	return resp
}

// as sends a request with somebody's token; none if it is empty.
func (a *api) as(t testing.TB, token, method, path, body string) *http.Response {
	t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return a.do(t, req)
}

func bodyOf(t testing.TB, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// connect returns a client whose requests go through do.
func (a *api) connect(t testing.TB, token string) *openapi.ClientWithResponses {
	t.Helper()
	c, err := openapi.Connect("http://webspaced.example.org", token, &openapi.ConnectOptions{
		HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Body == nil {
				r.Body = http.NoBody
			}
			return a.do(t, r), nil
		})},
	})
	require.NoError(t, err)
	return c
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLife takes a webspace through its life with the client.
func TestLife(t *testing.T) {
	a := newAPI(t, nil)
	ctx := t.Context()
	alice, admin, anyone := a.connect(t, "alice-token"), a.connect(t, "admin-token"), a.connect(t, "")

	health, err := anyone.GetHealthWithResponse(ctx)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, health.StatusCode())

	images, err := anyone.GetImagesWithResponse(ctx)
	require.NoError(t, err)
	require.Equal(t, "hello", (*images.JSON200)[0].Aliases[0].Name)

	_, err = alice.GetWebspaceWithResponse(ctx, "self")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "nothing"})
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	ssh := true
	_, err = alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello", SSH: &ssh})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.ErrorContains(t, err, "ssh")

	created, err := alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello"})
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, created.StatusCode())
	require.EqualValues(t, 1000, created.JSON201.User)
	require.Equal(t, 3.0, *created.JSON201.Config.StartupDelay)
	require.Equal(t, 8080, *created.JSON201.Config.HTTPPort)
	require.JSONEq(t, `{"user":1000,"config":{"startupDelay":3,"httpPort":8080,"sniPassthrough":false},"domains":[],"ports":{}}`, string(created.Body))
	_, err = alice.CreateWebspaceWithResponse(ctx, "alice", openapi.InitRequest{Image: "hello"})
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)

	_, err = alice.ShutdownWithResponse(ctx, "self")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	var problem *openapi.Error
	require.ErrorAs(t, err, &problem)
	require.Equal(t, http.StatusNotFound, problem.Status)
	_, err = alice.RebootWithResponse(ctx, "self")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)

	_, err = alice.StartWithResponse(ctx, "self")
	require.NoError(t, err)
	_, err = alice.StartWithResponse(ctx, "self")
	require.True(t, errdefs.IsConflict(err), "%v", err)
	state, err := alice.GetStateWithResponse(ctx, "self")
	require.NoError(t, err)
	require.True(t, state.JSON200.Running)
	_, err = alice.RebootWithResponse(ctx, "self")
	require.NoError(t, err)

	port, large := 8081, 1e300
	old, err := alice.UpdateConfigWithResponse(ctx, "self", openapi.Config{HTTPPort: &port})
	require.NoError(t, err)
	require.Equal(t, 8080, *old.JSON200.HTTPPort, "the old values")
	_, err = alice.UpdateConfigWithResponse(ctx, "self", openapi.Config{StartupDelay: &large})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	config, err := admin.GetConfigWithResponse(ctx, "alice")
	require.NoError(t, err)
	require.Equal(t, 8081, *config.JSON200.HTTPPort)
	require.Equal(t, 3.0, *config.JSON200.StartupDelay, "what is not given stays")

	_, err = admin.ShutdownWithResponse(ctx, "alice")
	require.NoError(t, err)
	state, err = alice.GetStateWithResponse(ctx, "self")
	require.NoError(t, err)
	require.False(t, state.JSON200.Running)
	_, err = alice.DeleteWebspaceWithResponse(ctx, "self")
	require.NoError(t, err)
	_, err = alice.GetWebspaceWithResponse(ctx, "self")
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

// TestOutOfReach looks at what clients are told when the runtime is out of reach: nothing of where it is.
func TestOutOfReach(t *testing.T) {
	a := newAPI(t, &runtimetest.FakeOptions{Before: func(context.Context, string, string) error {
		return errUnreachable
	}})
	resp := a.as(t, "alice-token", "GET", "/v1/webspace/self", "")
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "5", resp.Header.Get("Retry-After"))
	require.NotContains(t, bodyOf(t, resp), "/var/lib")
	require.Contains(t, a.log.String(), "/var/lib", "the log has the reason")

	resp = a.as(t, "", "GET", "/health", "")
	require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
	require.NotContains(t, bodyOf(t, resp), "/var/lib")
}
