package integration_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// A daemon that is replaced by another one on the same ports loses nobody, and one that is killed few.
func TestReplacement(t *testing.T) {
	e := testbed.LXD(t)
	e.ImportImage(t, "prompt-echo", promptEcho)
	prefix := e.Prefix + "r-"
	first := startDaemon(t, e, prefix, nil)
	t.Cleanup(func() { e.Delete(t, prefix+"u1000"); e.Delete(t, prefix+"u1001") })
	first.create(t, "alice", "prompt-echo")
	first.create(t, "bob", e.Image)
	var forward struct {
		EPort int `json:"ePort"`
	}
	require.Equal(t, http.StatusCreated, first.do(t, "alice", "POST", fmt.Sprintf("/webspace/self/ports/%d", testbed.EchoPort), nil, &forward))
	require.NoError(t, echoed("", forward.EPort))
	answered(t, first.gateway, "bob", prefix+"u1001")

	second := &daemon{api: first.api, gateway: first.gateway, config: first.config}
	t.Cleanup(func() {
		second.kill()
		if t.Failed() {
			t.Logf("the second daemon said:\n%s", second.logs.String())
		}
	})
	t.Run("gracefully", func(t *testing.T) {
		lost := probe(t, 250, first.gateway, forward.EPort, func() {
			second.launch(t)
			require.Eventually(t, func() bool { return strings.Contains(second.logs.String(), "msg=serving") }, 20*time.Second, 10*time.Millisecond)
			first.terminate(t)
		})
		require.Empty(t, lost)
	})
	t.Run("killed, and started again", func(t *testing.T) {
		lost := probe(t, 100, first.gateway, forward.EPort, func() {
			second.kill()
			second.start(t)
		})
		t.Logf("%d of %d lost", len(lost), probes)
		require.Less(t, len(lost), probes/100)
	})
}

const probes = 10_000

// probe visits the gateway and a forwarded port in turn, so many times a second, and the gateway also on a connection that
// is kept. It returns the errors. Meanwhile something happens.
func probe(t *testing.T, rate time.Duration, gateway string, port int, happen func()) (lost []error) {
	t.Helper()
	kept := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	visit := func(client *http.Client, source string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+gateway+"/", nil)
		if err != nil {
			return err
		}
		req.Host = "bob.ws.example.test"
		req.Header.Set("X-Forwarded-For", source)
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("answered with %s", res.Status)
		}
		return nil
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	var done atomic.Int64
	ticks := time.NewTicker(time.Second / rate)
	defer ticks.Stop()
	for i := range probes {
		<-ticks.C
		if i == probes/5 {
			group.Go(happen)
		}
		group.Go(func() {
			source := fmt.Sprintf("127.0.3.%d", 1+i%200) // one client may have 64 at a time
			var err error
			switch i % 4 {
			case 0, 2:
				err = echoed(source, port)
			case 1:
				err = visit(fresh, source)
			case 3:
				err = visit(kept, source)
			}
			done.Add(1)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				lost = append(lost, fmt.Errorf("%s: probe %d: %w", time.Now().Format("15:04:05.000"), i, err))
			}
		})
	}
	group.Wait()
	require.EqualValues(t, probes, done.Load())
	kept.CloseIdleConnections()
	if len(lost) > 0 {
		t.Log(lost[0], lost[len(lost)-1])
	}
	return lost
}
