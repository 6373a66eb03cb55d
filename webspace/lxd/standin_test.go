package lxd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
)

// standIn answers as an engine does, in ways that a real one is hard to bring to. What it does not know is not found.
type standIn struct {
	socket string

	mu       sync.Mutex
	handlers map[string]http.HandlerFunc
}

// newStandIn makes one with a profile, a network and an image.
func newStandIn(t *testing.T) *standIn {
	s := &standIn{socket: filepath.Join(t.TempDir(), "s"), handlers: map[string]http.HandlerFunc{}}
	l, err := net.Listen("unix", s.socket)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(s)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	s.handle("GET /1.0", answer(`{"auth":"trusted"}`))
	s.handle("GET /1.0/profiles/default", answer(`{"name":"default","devices":{"eth0":{"type":"nic","network":"br0"}}}`))
	s.handle("GET /1.0/networks/br0", answer(`{"name":"br0","managed":true,"config":{"ipv4.address":"198.18.9.1/24"}}`))
	s.handle("GET /1.0/networks/br0/leases", answer(`[{"address":"198.18.9.7","hwaddr":"00:16:3e:00:00:07"}]`))
	s.handle("GET /1.0/images", answer(`[{"type":"container","fingerprint":"0123456789abcdef","aliases":[{"name":"hello"}]}]`))
	s.handle("GET /1.0/instances", answer(`[]`))
	return s
}

func (s *standIn) handle(pattern string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[pattern] = h
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	h := s.handlers[r.Method+" "+r.URL.Path]
	if h == nil {
		h = s.handlers["*"]
	}
	s.mu.Unlock()
	if h == nil {
		h = refuse(http.StatusNotFound, "not found")
	}
	h(w, r)
}

func (s *standIn) connect(t *testing.T, change func(*lxd.Options)) *lxd.Runtime {
	t.Helper()
	opts := lxd.Options{Socket: s.socket, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opts)
	}
	r, err := lxd.Connect(t.Context(), &opts)
	require.NoError(t, err)
	return r
}

func answer(metadata string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"type":"sync","status_code":200,"metadata":`+metadata+`}`)
	}
}

func refuse(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"type": "error", "error_code": status, "error": text})
	}
}

// operation begins one.
func operation(metadata string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, `{"type":"async","status_code":100,"operation":"/1.0/operations/1","metadata":{"id":"1","metadata":`+metadata+`}}`)
	}
}

// TestEngineTrouble: that the engine refuses or breaks is nobody's fault who calls.
func TestEngineTrouble(t *testing.T) {
	s := newStandIn(t)
	var log bytes.Buffer
	r := s.connect(t, func(o *lxd.Options) {
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
	})
	calls := map[string]func(context.Context) error{
		"List":      func(ctx context.Context) error { _, err := r.List(ctx, ""); return err },
		"Get":       func(ctx context.Context) error { _, err := r.Get(ctx, "a"); return err },
		"Create":    func(ctx context.Context) error { return r.Create(ctx, "a", webspace.CreateOptions{Image: "hello"}) },
		"Delete":    func(ctx context.Context) error { return r.Delete(ctx, "a") },
		"Start":     func(ctx context.Context) error { return r.Start(ctx, "a") },
		"Stop":      func(ctx context.Context) error { return r.Stop(ctx, "a", time.Second) },
		"Restart":   func(ctx context.Context) error { return r.Restart(ctx, "a", time.Second) },
		"SetRecord": func(ctx context.Context) error { return r.SetRecord(ctx, "a", []byte("x"), "") },
		"State":     func(ctx context.Context) error { _, err := r.State(ctx, "a"); return err },
		"Images":    func(ctx context.Context) error { _, err := r.Images(ctx); return err },
		"Log":       func(ctx context.Context) error { _, err := r.Log(ctx, "a", 100); return err },
		"ClearLog":  func(ctx context.Context) error { return r.ClearLog(ctx, "a") },
		"Watch":     func(ctx context.Context) error { return r.Watch(ctx, func(webspace.Event) {}) },
		"Exec": func(ctx context.Context) error {
			_, err := r.Exec(ctx, "a", webspace.ExecOptions{Command: []string{"true"}})
			return err
		},
		"Console": func(ctx context.Context) error { return r.Console(ctx, "a", webspace.ConsoleOptions{}) },
	}
	s.mu.Lock()
	healthy := s.handlers
	s.mu.Unlock()
	for _, status := range []int{400, 401, 403, 405, 418, 429, 500, 501, 502, 507} {
		s.mu.Lock()
		s.handlers = map[string]http.HandlerFunc{"*": refuse(status, "trouble")}
		s.mu.Unlock()
		for op, call := range calls {
			onlyUnavailable(t, call(t.Context()), "%s after status %d", op, status)
		}
	}
	require.Equal(t, 1, strings.Count(log.String(), "\n"), "said once: %s", log.String())

	// Where something else is refused or missing than what the caller named.
	s.mu.Lock()
	s.handlers = healthy
	s.mu.Unlock()
	for _, text := range []string{"Failed to run: forkstart: no space left on device", "Device veth1 already exists", "sh: command not found"} {
		s.handle("PUT /1.0/instances/a/state", operation("{}"))
		failed, err := json.Marshal(text)
		require.NoError(t, err)
		s.handle("GET /1.0/operations/1/wait", answer(`{"id":"1","status_code":400,"err":`+string(failed)+`}`))
		onlyUnavailable(t, calls["Start"](t.Context()), "start: %s", text)
	}
	s.handle("GET /1.0/images", answer(`"nonsense"`))
	onlyUnavailable(t, calls["Images"](t.Context()), "nonsense")
	s.handle("GET /1.0/images", answer(`[{"type":"container","fingerprint":"0123456789abcdef","aliases":[{"name":"hello"}]}]`))
	s.handle("GET /1.0/profiles/default", refuse(http.StatusNotFound, "Profile not found"))
	onlyUnavailable(t, calls["Create"](t.Context()), "no profile")
}

// onlyUnavailable requires an error to be Unavailable, and to have no second class that counts first.
func onlyUnavailable(t *testing.T, err error, what string, args ...any) {
	t.Helper()
	for _, other := range []error{
		errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated, errdefs.ErrInvalidArgument, errdefs.ErrNotFound,
		errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrInternal, context.Canceled,
	} {
		require.NotErrorIs(t, err, other, append([]any{what}, args...)...)
	}
	require.ErrorIs(t, err, errdefs.ErrUnavailable, append([]any{what}, args...)...)
}

// TestConnectDenied: while we connect, not being let in is an answer.
func TestConnectDenied(t *testing.T) {
	for _, path := range []string{"/1.0", "/1.0/profiles/default", "/1.0/networks/br0"} {
		s := newStandIn(t)
		s.handle("GET "+path, refuse(http.StatusForbidden, "not authorized"))
		_, err := lxd.Connect(t.Context(), &lxd.Options{Socket: s.socket, Logger: slog.New(slog.DiscardHandler)})
		require.True(t, errdefs.IsPermissionDenied(err), "%s: %v", path, err)
		require.False(t, errdefs.IsUnavailable(err), "%s: %v", path, err)
	}
}

// TestFrozenWhileAttaching has the engine fall silent after the first of a command's streams. That it is noticed ends the
// attempts to open the others, which must not look as if the caller had left.
func TestFrozenWhileAttaching(t *testing.T) {
	s := newStandIn(t)
	gone := make(chan struct{})
	t.Cleanup(func() { close(gone) }) // before the server's own cleanup
	for _, op := range []string{"exec", "console"} {
		s.handle("POST /1.0/instances/a/"+op, operation(`{"fds":{"control":"c","0":"in","1":"out","2":"err"}}`))
	}
	s.handle("GET /1.0/operations/1/websocket", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("secret") == "c" {
			conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer conn.Close()
		}
		<-gone // no pong, no answer
	})
	r := s.connect(t, func(o *lxd.Options) { o.EventTimeout = 300 * time.Millisecond })
	_, err := r.Exec(t.Context(), "a", webspace.ExecOptions{Command: []string{"true"}})
	onlyUnavailable(t, err, "Exec")
	onlyUnavailable(t, r.Console(t.Context(), "a", webspace.ConsoleOptions{}), "Console")

	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	_, err = r.Exec(ctx, "a", webspace.ExecOptions{Command: []string{"true"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

const unpinned = `{"name":"a","status_code":103,"config":{"volatile.eth0.hwaddr":"00:16:3e:00:00:07"},` +
	`"expanded_devices":{"eth0":{"type":"nic","network":"br0"}}}`

// TestLeasesAreRead reads many instances that have no pinned address.
func TestLeasesAreRead(t *testing.T) {
	s := newStandIn(t)
	var requests atomic.Int64
	leases := answer(`[{"address":"198.18.9.7","hwaddr":"00:16:3e:00:00:07"}]`)
	s.handle("GET /1.0/networks/br0/leases", func(w http.ResponseWriter, r *http.Request) { requests.Add(1); leases(w, r) })
	s.handle("GET /1.0/instances/a", answer(unpinned))
	r := s.connect(t, nil)
	begun := time.Now()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 25 {
				i, err := r.Get(t.Context(), "a")
				if err != nil || i.Address.String() != "198.18.9.7" {
					t.Errorf("%v, %v", i, err)
				}
			}
		})
	}
	group.Wait()
	require.LessOrEqual(t, requests.Load(), 1+int64(time.Since(begun)/time.Second), "of 200 instances")

	// They do not last, and neither does an error.
	require.Eventually(t, func() bool {
		before := requests.Load()
		_, err := r.Get(t.Context(), "a")
		return err == nil && requests.Load() > before
	}, 30*time.Second, 50*time.Millisecond)
	s.handle("GET /1.0/networks/br0/leases", refuse(http.StatusInternalServerError, "trouble"))
	require.Eventually(t, func() bool { _, err := r.Get(t.Context(), "a"); return err != nil }, 30*time.Second, 50*time.Millisecond)
	s.handle("GET /1.0/networks/br0/leases", leases)
	_, err := r.Get(t.Context(), "a")
	require.NoError(t, err)
}

// TestLeasesAreWaitedFor has callers leave while others wait for the same answer.
func TestLeasesAreWaitedFor(t *testing.T) {
	s := newStandIn(t)
	asked, release := make(chan struct{}, 10), make(chan struct{})
	leases := answer(`[{"address":"198.18.9.7","hwaddr":"00:16:3e:00:00:07"}]`)
	s.handle("GET /1.0/networks/br0/leases", func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
			leases(w, r)
		case <-r.Context().Done():
			asked <- struct{}{}
		}
	})
	s.handle("GET /1.0/instances/a", answer(unpinned))
	r := s.connect(t, nil)
	get := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() { _, err := r.Get(ctx, "a"); done <- err }()
		return done
	}
	// Nobody is left: the request ends.
	first, leave := context.WithCancel(t.Context())
	done := get(first)
	<-asked
	leave()
	require.ErrorIs(t, <-done, context.Canceled)
	<-asked

	first, leave = context.WithCancel(t.Context())
	done = get(first)
	<-asked
	other := get(t.Context())
	leave()
	require.ErrorIs(t, <-done, context.Canceled)
	close(release)
	require.NoError(t, <-other, "who has not left gets an answer")
}
