package proxy_test

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkGatewayWarm compares a request through the gateway to a ready target with the same request straight to it.
// ns/op and allocs/op are of requests through the gateway, with all that client and target do for them.
func BenchmarkGatewayWarm(b *testing.B) {
	body := make([]byte, 1<<10)
	target := instance(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	h := serve(b, alice, running(target), nil)
	direct := &http.Client{Transport: &http.Transport{}}
	defer direct.CloseIdleConnections()
	do := func(client *http.Client, url string) time.Duration {
		began := time.Now()
		response, err := client.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return time.Since(began)
	}
	// One after the other, so that whatever else the machine does slows both down.
	var straight, through time.Duration
	var straightAllocs, throughAllocs uint64
	var before, after runtime.MemStats
	n := 0
	for b.Loop() {
		n++
		through += do(h.client, "http://alice.test/")
		b.StopTimer()
		straight += do(direct, "http://"+target.String()+"/")
		b.StartTimer()
	}
	const runs = 1000
	for allocs, url := range map[*uint64]string{&throughAllocs: "http://alice.test/", &straightAllocs: "http://" + target.String() + "/"} {
		client := direct
		if allocs == &throughAllocs {
			client = h.client
		}
		runtime.ReadMemStats(&before)
		for range runs {
			do(client, url)
		}
		runtime.ReadMemStats(&after)
		*allocs = (after.Mallocs - before.Mallocs) / runs
	}
	b.ReportMetric(float64(through)/float64(straight), "times-direct")
	b.ReportMetric(float64(through-straight)/float64(n), "added-ns/op")
	b.ReportMetric(float64(throughAllocs)-float64(straightAllocs), "added-allocs/op")
}

// BenchmarkGatewayThroughput is for large bodies.
func BenchmarkGatewayThroughput(b *testing.B) {
	const size = 16 << 20
	chunk := make([]byte, 64<<10)
	target := instance(b, func(w http.ResponseWriter, _ *http.Request) {
		for range size / len(chunk) {
			_, _ = w.Write(chunk)
		}
	})
	h := serve(b, alice, running(target), nil)
	b.SetBytes(size)
	for b.Loop() {
		response, err := h.client.Get("http://alice.test/")
		require.NoError(b, err)
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

// BenchmarkGatewayHeld is what a held request costs beyond its boot: activation, a new connection, the request.
func BenchmarkGatewayHeld(b *testing.B) {
	target := instance(b, func(http.ResponseWriter, *http.Request) {})
	boot := make(chan struct{})
	close(boot)
	activator := booting(target, boot)
	h := serve(b, alice, activator, nil)
	for b.Loop() {
		conn, err := net.Dial("tcp", h.address)
		require.NoError(b, err)
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: alice.test\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
}
