package bench_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// forwarders are all that forward TCP to target, with none in front.
func forwarders(b *testing.B, target string) []peer {
	tcp, _ := traefik(b, target)
	return []peer{{name: "direct", address: target}, webspaced(b, "forwarder", target), haproxy(b, target), tcp}
}

// compare measures all peers in turn, again and again, and reports what one round of each takes in the middle: rate is
// what is done in a round, in the unit that is reported per second.
func compare(b *testing.B, peers []peer, unit string, rate float64, use func(*testing.B, peer)) {
	took := map[string][]time.Duration{}
	for n := 0; b.Loop(); n++ {
		for i := range peers {
			p := peers[(i+n)%len(peers)]
			began := time.Now()
			use(b, p)
			took[p.name] = append(took[p.name], time.Since(began))
		}
	}
	for _, p := range peers {
		if p.pid != 0 { // less than times, it depends on what else the machine does
			rounds := float64(len(took[p.name]))
			b.ReportMetric(float64(processor(b, p.pid).Microseconds())/rounds/rate, p.name+"-cpu-µs/"+unit)
		}
	}
	middle := map[string]float64{}
	for name, all := range took {
		slices.Sort(all)
		middle[name] = rate / all[len(all)/2].Seconds()
		b.ReportMetric(middle[name], name+"-"+unit+"/s")
	}
	b.ReportMetric(middle["webspaced"]/middle["haproxy"], "x-haproxy")
	b.ReportMetric(middle["webspaced"]/middle["traefik"], "x-traefik")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBulk is one large download. Aim: at least HAProxy's.
func BenchmarkBulk(b *testing.B) {
	const size = 512 << 20
	chunk := make([]byte, 256<<10)
	target := server(b, func(conn *net.TCPConn) {
		for range size / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
	buffer := make([]byte, 256<<10)
	compare(b, forwarders(b, target), "MB", size/1e6, func(b *testing.B, p peer) {
		conn, err := net.Dial("tcp", p.address)
		require.NoError(b, err)
		defer conn.Close()
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, buffer)
		require.NoError(b, err)
		require.EqualValues(b, size, n)
	})
}

// BenchmarkConnections is short connections by 32 clients at a time: open, one byte there and back, close. Aim: at least
// 1.3 times Traefik's, 0.8 times HAProxy's.
func BenchmarkConnections(b *testing.B) {
	const connections, clients = 2000, 32
	target := server(b, func(conn *net.TCPConn) { _, _ = io.Copy(conn, struct{ io.Reader }{conn}) })
	compare(b, forwarders(b, target), "conns", connections, func(b *testing.B, p peer) {
		var group sync.WaitGroup
		var left atomic.Int64
		left.Store(connections)
		for range clients {
			group.Go(func() {
				one := make([]byte, 1)
				for left.Add(-1) >= 0 {
					conn, err := net.Dial("tcp", p.address)
					if err == nil {
						_, err = conn.Write(one)
					}
					if err == nil {
						_, err = conn.Read(one)
					}
					if err != nil {
						b.Error(p.name, err)
						return
					}
					_ = conn.Close()
				}
			})
		}
		group.Wait()
	})
}

// BenchmarkRoundTrip is what a warm connection takes for a byte there and back.
func BenchmarkRoundTrip(b *testing.B) {
	const trips = 2000
	target := server(b, func(conn *net.TCPConn) { _, _ = io.Copy(conn, struct{ io.Reader }{conn}) })
	peers := forwarders(b, target)
	conns := map[string]net.Conn{}
	for _, p := range peers {
		conn, err := net.Dial("tcp", p.address)
		require.NoError(b, err)
		defer conn.Close()
		conns[p.name] = conn
	}
	took := map[string][]time.Duration{}
	one := make([]byte, 1)
	for b.Loop() {
		for _, p := range peers {
			for range trips {
				began := time.Now()
				_, err := conns[p.name].Write(one)
				require.NoError(b, err)
				_, err = conns[p.name].Read(one)
				require.NoError(b, err)
				took[p.name] = append(took[p.name], time.Since(began))
			}
		}
	}
	report(b, took, 50)
}

// report tells what each peer adds to the direct way, at a percentile.
func report(b *testing.B, took map[string][]time.Duration, percentile int) {
	at := map[string]float64{}
	for name, all := range took {
		slices.Sort(all)
		at[name] = float64(all[len(all)*percentile/100].Microseconds())
	}
	b.ReportMetric(at["direct"], "direct-µs")
	for name := range took {
		if name != "direct" {
			b.ReportMetric(at[name]-at["direct"], name+"-added-µs")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleMemory is what a connection that has been used, and is idle, takes of the process: both its sides, without
// what the kernel has. Aim: at most 12 KiB.
func BenchmarkIdleMemory(b *testing.B) {
	const connections = 3000
	target := server(b, func(conn *net.TCPConn) { _, _ = io.Copy(conn, struct{ io.Reader }{conn}) })
	sizes, descriptors := map[string]float64{}, map[string]float64{}
	for b.Loop() {
		for _, p := range []peer{webspaced(b, "forwarder", target), haproxy(b, target)} {
			before := memory(b, p.pid)
			conns := make([]net.Conn, connections)
			for i := range conns {
				conn, err := net.Dial("tcp", p.address)
				require.NoError(b, err)
				_, err = conn.Write([]byte("x"))
				require.NoError(b, err)
				_, err = conn.Read(make([]byte, 1))
				require.NoError(b, err)
				conns[i] = conn
			}
			sizes[p.name] = float64(memory(b, p.pid)-before) / connections / 1024
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
			require.NoError(b, err)
			descriptors[p.name] = float64(len(fds)) / connections
			for _, conn := range conns {
				_ = conn.Close()
			}
		}
	}
	for name, size := range sizes {
		b.ReportMetric(size, name+"-KiB/conn")
		b.ReportMetric(descriptors[name], name+"-fds/conn")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkGateway is a thousand small requests a second, on connections that are kept, at the 95th percentile. They are
// sent when they are due, however long others take. Aim: at most 1 ms more than direct ones.
func BenchmarkGateway(b *testing.B) {
	const requests, rate = 2000, 1000
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	go func() { _ = origin.Serve(l) }()
	b.Cleanup(func() { _ = origin.Shutdown(context.Background()) })
	target := l.Addr().String()
	_, web := traefik(b, target)
	peers := []peer{{name: "direct", address: target}, webspaced(b, "gateway", target), web}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
	get := func(p peer) error {
		response, err := client.Get("http://" + p.address + "/")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	took := map[string][]time.Duration{}
	for b.Loop() {
		for _, p := range peers {
			all := make([]time.Duration, requests)
			var group sync.WaitGroup
			began := time.Now()
			for i := range all {
				due := began.Add(time.Duration(i) * time.Second / rate)
				time.Sleep(time.Until(due))
				group.Go(func() {
					sent := time.Now()
					if err := get(p); err != nil {
						b.Error(p.name, err)
					}
					all[i] = time.Since(sent)
				})
			}
			group.Wait()
			took[p.name] = append(took[p.name], all[requests/10:]...) // connections are warm by then
		}
	}
	report(b, took, 95)
}
