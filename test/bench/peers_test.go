// Package bench_test measures the forwarder and the gateway against HAProxy and Traefik, which do the same for the same
// target in the same run: what else the machine does slows all of them down. What is reported is figures and ratios;
// docs/benchmarks.md says what they mean.
package bench_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/proxy"
)

// own makes this program a forwarder or a gateway to an address: "forwarder 127.0.0.1:1", say.
const own = "WEBSPACED_BENCH"

func TestMain(m *testing.M) {
	if what := os.Getenv(own); what != "" {
		if err := serve(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testbed.Main(m)
}

// serve runs a forwarder or a gateway until its standard input ends. It prints its port.
func serve(what string) error {
	kind, target, _ := strings.Cut(what, " ")
	address, err := netip.ParseAddrPort(target)
	if err != nil {
		return err
	}
	up := running(address)
	ctx := context.Background()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	switch kind {
	case "forwarder":
		_ = l.Close()
		f := proxy.NewForwarder(up, &proxy.ForwarderOptions{
			ListenAddress: netip.MustParseAddr("127.0.0.1"), Limits: proxy.HoldLimits{Webspace: 10_000, Source: 10_000},
		})
		f.Forward(port, proxy.Target{Webspace: "bench", Port: 1})
		if err := f.Status(port); err != nil {
			return err
		}
		defer func() { _ = f.Shutdown(ctx) }()
	case "gateway":
		g := proxy.NewGateway(up, up, nil)
		go func() { _ = g.Serve(l) }()
		defer func() { _ = g.Shutdown(ctx) }()
	}
	fmt.Println(port)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// running is where everything is, always ready.
type running netip.AddrPort

func (r running) Route(string) (proxy.Target, error) {
	return proxy.Target{Webspace: "bench", Port: 1}, nil
}

func (r running) Ready(proxy.Target) (proxy.Endpoint, bool) {
	return proxy.Endpoint{Address: netip.AddrPort(r), Release: func(error) {}}, true
}

func (r running) Activate(context.Context, proxy.Target) (proxy.Endpoint, error) {
	return proxy.Endpoint{}, errdefs.ErrUnavailable
}

// peer is a proxy in a process of its own, or none.
type peer struct {
	name, address string
	pid           int
}

// start runs a program until the end of the benchmark.
func start(b *testing.B, cmd *exec.Cmd) int {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// webspaced is a forwarder or a gateway to target.
func webspaced(b *testing.B, kind, target string) peer {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), own+"="+kind+" "+target)
	_, err := cmd.StdinPipe() // ends with this process
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	pid := start(b, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	return peer{"webspaced", "127.0.0.1:" + strings.TrimSpace(line), pid}
}

// haproxy forwards TCP to target, with splice(2).
func haproxy(b *testing.B, target string) peer {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		absent(b, "needs haproxy: on Debian, test/install installs it")
	}
	address := testbed.Addresses(b, 1)[0]
	config := filepath.Join(b.TempDir(), "haproxy.cfg")
	require.NoError(b, os.WriteFile(config, fmt.Appendf(nil, `
global
  maxconn 4000
defaults
  mode tcp
  option splice-auto
  option splice-request
  option splice-response
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen bench
  bind %s
  server target %s
`, address, target), 0o600))
	pid := start(b, exec.Command(path, "-db", "-f", config))
	await(b, address)
	return peer{"haproxy", address, pid}
}

// traefik forwards TCP, and HTTP, to target.
func traefik(b *testing.B, target string) (tcp, web peer) {
	address := testbed.Addresses(b, 1)[0]
	dir := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(dir, "routes.yaml"), fmt.Appendf(nil, `
tcp:
  routers: {bench: {rule: "HostSNI(%[1]s*%[1]s)", entryPoints: [bench], service: bench}}
  services: {bench: {loadBalancer: {servers: [{address: %[2]q}]}}}
http:
  routers: {bench: {rule: "PathPrefix(%[1]s/%[1]s)", entryPoints: [web], service: bench}}
  services: {bench: {loadBalancer: {servers: [{url: "http://%[2]s"}]}}}
`, "`", target), 0o600))
	p := testbed.Traefik(b, "--entrypoints.bench.address="+address, "--providers.file.directory="+dir, "--log.level=ERROR")
	require.Eventually(b, func() bool {
		response, err := http.Get("http://" + p.API + "/api/tcp/routers/bench@file")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, 20*time.Second, 20*time.Millisecond)
	return peer{"traefik", address, 0}, peer{"traefik", p.Web, 0}
}

func await(b *testing.B, address string) {
	require.Eventually(b, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
}

// absent leaves a benchmark out, or fails where nothing may be left out.
func absent(b *testing.B, reason string) {
	if os.Getenv("CI") == "true" {
		b.Fatal(reason)
	}
	b.Skip(reason)
}

// server serves each connection with a function, and closes it then.
func server(b *testing.B, handle func(*net.TCPConn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

// memory returns the resident bytes of a process.
func memory(b *testing.B, pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	require.NoError(b, err)
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	require.NoError(b, err)
	return pages * os.Getpagesize()
}

// processor returns how long a process has computed, to the hundredth of a second.
func processor(b *testing.B, pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		require.NoError(b, err)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
