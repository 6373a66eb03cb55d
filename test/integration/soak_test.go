package integration_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// TestSoak has members and visitors do all that they do, at once and for SOAK (20 seconds if it is not set), and then
// leaves the daemon alone: it must hold no more goroutines, descriptors and memory than after the first of it. Whoever
// asks for a webspace that there is must be served all along, however often it is stopped.
func TestSoak(t *testing.T) {
	duration := 20 * time.Second
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	e := testbed.LXD(t)
	prefix := e.Prefix + "soak-"
	s := &soak{T: t, engine: e, daemon: startDaemon(t, e, prefix, nil), alice: prefix + "u1000", counts: map[string]int{}}
	t.Cleanup(func() { e.Delete(t, s.alice, prefix+"u1001") })
	s.create(t, "alice", e.Image)
	s.create(t, "bob", e.Image)
	var forward struct {
		EPort int `json:"ePort"`
	}
	require.Equal(t, http.StatusCreated, s.do(t, "alice", "POST", fmt.Sprintf("/webspace/self/ports/%d", testbed.EchoPort), nil, &forward))
	s.port = forward.EPort

	s.run(min(duration/2, time.Minute))
	before := s.settled(usage{goroutines: math.MaxInt, descriptors: math.MaxInt})
	t.Logf("after the first of it: %v", before)
	s.run(duration)
	// The bigger a heap is, the later it is collected; and tables grow by halves.
	after := s.settled(usage{before.goroutines, before.descriptors, before.heap + before.heap/4 + 2<<20})
	t.Logf("in the end: %v", after)
	if after.goroutines > before.goroutines || after.descriptors > before.descriptors {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // it says what its goroutines do
		<-s.ended
	}
	require.LessOrEqual(t, after.goroutines, before.goroutines)
	require.LessOrEqual(t, after.descriptors, before.descriptors)
	require.LessOrEqual(t, after.heap, before.heap+before.heap/4+2<<20)
}

type soak struct {
	*testing.T
	*daemon
	engine *testbed.Engine
	alice  string // her instance
	port   int    // that she has forwarded to her echo server
	ends   atomic.Int64
	killed atomic.Int64 // when her instance was last ended behind the daemon's back, in nanoseconds

	mu     sync.Mutex
	counts map[string]int // of what was done
}

// usage is what a daemon holds.
type usage struct{ goroutines, descriptors, heap int }

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %.1f MiB of heap", u.goroutines, u.descriptors, float64(u.heap)/(1<<20))
}

// usage reads what the daemon holds from its metrics.
func (s *soak) usage() (u usage) {
	s.Helper()
	response, err := http.Get("http://" + s.api + "/metrics")
	require.NoError(s, err)
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if to := map[string]*int{
			"go_goroutines": &u.goroutines, "process_open_fds": &u.descriptors, "go_memstats_heap_alloc_bytes": &u.heap,
		}[name]; to != nil {
			var value float64
			_, err := fmt.Sscan(text, &value)
			require.NoError(s, err)
			*to = int(value)
		}
	}
	return u
}

// settled waits until the daemon holds no more than so much, but no longer than what is kept for reuse is kept, and returns
// the least that it then holds. The many scrapes have its garbage collected.
func (s *soak) settled(most usage) usage {
	s.Helper()
	least := usage{math.MaxInt, math.MaxInt, math.MaxInt}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		http.DefaultClient.CloseIdleConnections()
		u := s.usage()
		least = usage{min(least.goroutines, u.goroutines), min(least.descriptors, u.descriptors), min(least.heap, u.heap)}
		enough := least.goroutines <= most.goroutines && least.descriptors <= most.descriptors && least.heap <= most.heap
		if most.goroutines == math.MaxInt && time.Since(began) > 45*time.Second || most.goroutines < math.MaxInt && enough ||
			time.Since(began) > 3*time.Minute {
			return least
		}
	}
}

// run does everything at once for so long.
func (s *soak) run(duration time.Duration) {
	ctx, cancel := context.WithTimeout(s.Context(), duration)
	defer cancel()
	var group sync.WaitGroup
	for name, act := range map[string]func(context.Context) error{
		"visit": s.visitAlice, "visit of bob": s.visitBob, "connection": s.connect, "client that leaves": s.leave,
		"end": s.end, "port": s.addPort, "command": s.command, "events": s.events, "configuration": s.configure,
		"bob's life": s.churn,
	} {
		group.Go(func() {
			for ctx.Err() == nil {
				// What has begun is ended, whatever the time.
				one, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				began := time.Now()
				err := act(one)
				done()
				s.mu.Lock()
				s.counts[name]++
				switch {
				case err == nil:
				case s.killed.Load() > began.Add(-5*time.Second).UnixNano():
					s.counts["cut off with the instance"]++ // what was under way there
				default:
					s.Errorf("%s %s: %v", time.Now().Format("15:04:05.000"), name, err)
				}
				s.mu.Unlock()
				pause(ctx, rand.N(500*time.Millisecond))
			}
		})
	}
	for minute := time.NewTicker(time.Minute); ctx.Err() == nil; {
		select {
		case <-minute.C:
			s.mu.Lock()
			s.Logf("%v; done: %v", s.usage(), s.counts)
			s.mu.Unlock()
		case <-ctx.Done():
			minute.Stop()
		}
	}
	group.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Logf("done: %v", s.counts)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// call asks the API, of which no answer may say that it has failed.
func (s *soak) call(ctx context.Context, user, method, path, body string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.api+"/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+user)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 500 {
		err = fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, said)
	}
	return res.StatusCode, err
}

func (s *soak) visitAlice(ctx context.Context) error {
	status, body, err := visit(ctx, s.gateway, "alice.ws.example.test")
	if err == nil && (status != http.StatusOK || body != "hello from "+s.alice+"\n") {
		err = fmt.Errorf("%d %.200s", status, body)
	}
	return err
}

// visitBob may come when there is no bob, or when he is just being deleted.
func (s *soak) visitBob(ctx context.Context) error {
	_, _, err := visit(ctx, s.gateway, "bob.ws.example.test")
	return err
}

func (s *soak) connect(context.Context) error { return echoed("", s.port) }

// leave connects and is gone, often while it is held.
func (s *soak) leave(ctx context.Context) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return err
	}
	if rand.N(2) == 0 {
		_, err = io.WriteString(conn, "hello?")
	}
	pause(ctx, rand.N(300*time.Millisecond))
	if rand.N(2) == 0 {
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
	_ = conn.Close()
	return err
}

// end ends alice's instance in all ways. Every other time the daemon does it: a webspace that stops by itself again and
// again is rightly booted less and less often.
func (s *soak) end(ctx context.Context) (err error) {
	pause(ctx, rand.N(3*time.Second))
	switch n := s.ends.Add(1); {
	case n%4 == 1:
		_, err = s.call(ctx, "alice", "DELETE", "/webspace/self/state", "")
	case n%4 == 3:
		_, err = s.call(ctx, "alice", "PUT", "/webspace/self/state", "")
	default:
		end := []string{"stop", "--force", s.alice}
		if n%8 == 4 {
			end = []string{"exec", s.alice, "--", "poweroff"}
		}
		s.killed.Store(time.Now().UnixNano())
		_ = s.engine.Command(end...).Run() // it may have stopped already
		s.killed.Store(time.Now().UnixNano())
	}
	return err
}

func (s *soak) addPort(ctx context.Context) error {
	port := 50000 + rand.N(1000)
	path := fmt.Sprintf("/webspace/self/ports/%d", port)
	if status, err := s.call(ctx, "alice", "POST", fmt.Sprintf("%s/%d", path, testbed.EchoPort), ""); err != nil || status != http.StatusCreated {
		return err
	}
	err := echoed("", port)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = nil // a connection of this host may have that port at its end, for as long as it likes
	}
	for status := 0; status != http.StatusNoContent; { // or it would be left in the end
		var e error
		if status, e = s.call(ctx, "alice", "DELETE", path, ""); e != nil && ctx.Err() != nil {
			return e
		}
	}
	return err
}

// command runs something at a terminal, which may be stopped meanwhile, or leaves in the middle.
func (s *soak) command(ctx context.Context) error {
	conn, response, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+s.api+"/v1/webspace/self/exec", http.Header{"Authorization": {"Bearer alice"}})
	if response != nil && response.StatusCode < 500 && err != nil {
		return nil // not now
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	_ = conn.WriteJSON(command("sh", "-c", "echo hello; sleep 0.2; echo bye"))
	for range rand.N(5) {
		if _, _, err := conn.ReadMessage(); err != nil {
			break
		}
	}
	return nil
}

func (s *soak) events(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rand.N(2*time.Second))
	defer cancel()
	_, err := s.call(ctx, "alice", "GET", "/webspace/self/events", "")
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *soak) configure(ctx context.Context) error {
	_, err := s.call(ctx, "alice", "PATCH", "/webspace/self/config", fmt.Sprintf(`{"startupDelay": %d}`, 10+rand.N(5)))
	return err
}

// churn deletes bob's webspace and creates it again.
func (s *soak) churn(ctx context.Context) error {
	pause(ctx, rand.N(5*time.Second))
	if status, err := s.call(ctx, "bob", "DELETE", "/webspace/self", ""); err != nil || status >= 400 {
		return fmt.Errorf("%d %w", status, err)
	}
	if status, err := s.call(ctx, "bob", "POST", "/webspace/self", fmt.Sprintf(`{"image": %q}`, s.engine.Image)); err != nil || status >= 400 {
		return fmt.Errorf("%d %w", status, err)
	}
	return nil
}
