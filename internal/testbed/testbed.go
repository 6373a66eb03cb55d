// Package testbed starts the real parts that tests run against: LXD, Incus, Traefik, Redis and
// the API server of Kubernetes. Only tests import it.
//
// Every part is the test process's own: it has its own directory, ports and bridge, so that several test binaries run
// at the same time, and it dies with the test process, however that ends. A test binary that uses the package says so:
//
//	func TestMain(m *testing.M) { testbed.Main(m) }
//
// Engines are started once for a test binary, by the first test that asks, and are shared by its tests. A test that
// needs a part which can not run here is skipped with the reason; with CI=true in the environment it fails instead.
package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// started is what runs in this test process. Sharing real parts among all tests of a binary is its whole point.
var started struct {
	sync.Mutex
	main    bool
	engines map[kind]*Engine
	stops   []func()
}

// Main runs the tests, stops everything that they started, and exits. Call it from TestMain.
func Main(m *testing.M) {
	started.Lock()
	started.main = true
	started.Unlock()

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stopAll()
		os.Exit(130)
	}()
	code := m.Run()
	stopAll()
	os.Exit(code)
}

// AtEnd has fn called when all tests are over, for what they share.
func AtEnd(fn func()) {
	started.Lock()
	defer started.Unlock()
	started.stops = append(started.stops, fn)
}

func stopAll() {
	started.Lock()
	stops := started.stops
	started.stops = nil
	started.Unlock()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
}

// missing ends the test: skipped, or failed where nothing may be left out.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s; with CI=true no test may be left out", reason)
	}
	t.Skip(reason)
}

// need ends the test unless it runs as root on Linux, with these programs.
func need(t testing.TB, programs ...string) {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		missing(t, "needs root on Linux")
	}
	var absent []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			absent = append(absent, p)
		}
	}
	if len(absent) > 0 {
		missing(t, "needs %s: on Debian, test/install installs them", strings.Join(absent, ", "))
	}
}
