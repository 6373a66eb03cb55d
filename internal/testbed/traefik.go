package testbed

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TraefikVersion is a Traefik that test/traefik/build builds: what the modules there require.
type TraefikVersion string

// The current major version, and the one before.
const (
	TraefikV3 TraefikVersion = "v3.6.12"
	TraefikV2 TraefikVersion = "v2.11.35"
)

// Proxy is a running Traefik.
type Proxy struct {
	// Web, Secure and API are its addresses on the loopback: the entry points "web" (HTTP) and "websecure" (TCP, for
	// TLS), and /api and /ping. They stay the same over Restart.
	Web, Secure, API string

	binary string
	args   []string
	home   string
	log    *log
	cmd    *exec.Cmd
	ended  chan struct{}
}

// Traefik starts a Traefik of the test's own, of the current version. See [TraefikVersion.Start].
func Traefik(t testing.TB, args ...string) *Proxy {
	t.Helper()
	return TraefikV3.Start(t, args...)
}

// Start starts a Traefik of the test's own, with these flags besides those for its entry points and its API. It ends with
// the test.
func (v TraefikVersion) Start(t testing.TB, args ...string) *Proxy {
	t.Helper()
	binary := filepath.Join(cache(), "traefik-"+string(v))
	if _, err := os.Stat(binary); err != nil {
		missing(t, "needs Traefik %s: test/traefik/build builds it, the first time in some 7 minutes", v)
	}
	p := &Proxy{binary: binary, home: t.TempDir(), log: &log{}}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("Traefik said:\n%s", p.log)
		}
	})
	// Another process can take a port between our finding it and Traefik's listening on it.
	var err error
	for range 3 {
		addresses := Addresses(t, 3)
		p.Web, p.Secure, p.API = addresses[0], addresses[1], addresses[2]
		p.args = append([]string{
			"--entrypoints.web.address=" + p.Web,
			"--entrypoints.websecure.address=" + p.Secure,
			"--entrypoints.traefik.address=" + p.API,
			"--api.insecure=true", "--ping=true", "--log.level=INFO",
			"--global.checknewversion=false", "--global.sendanonymoususage=false",
		}, args...)
		if err = p.start(); err == nil {
			return p
		}
		p.Kill()
	}
	t.Fatalf("Traefik does not start: %v\n%s", err, p.log)
	return nil
}

func (p *Proxy) start() error {
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Dir = p.home
	p.cmd.Env = append(os.Environ(), "HOME="+p.home, "XDG_CONFIG_HOME="+p.home)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = ownGroup()
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.ended = ended
	go func(cmd *exec.Cmd) {
		cmd.Wait()
		close(ended)
	}(p.cmd)

	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if response, err := client.Get("http://" + p.API + "/ping"); err == nil {
			response.Body.Close()
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("no answer")
}

// Stop ends Traefik as an operator would, and waits until it has ended.
func (p *Proxy) Stop() { p.end(os.Interrupt) }

// Kill kills Traefik.
func (p *Proxy) Kill() { p.end(os.Kill) }

func (p *Proxy) end(signal os.Signal) {
	if p.ended == nil {
		return
	}
	p.cmd.Process.Signal(signal)
	<-p.ended
}

// Restart starts Traefik again, after killing it if it runs, and returns when it answers.
func (p *Proxy) Restart(t testing.TB) {
	t.Helper()
	p.Kill()
	if err := p.start(); err != nil {
		t.Fatalf("Traefik does not start again: %v", err)
	}
}

// Curl has curl ask for a host's page over TLS, trusting nobody but ca, and returns that. What is wrong to curl is an
// [exec.ExitError].
func (p *Proxy) Curl(t testing.TB, ca *CA, host, path string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		missing(t, "needs curl: on Debian, test/install installs it")
	}
	out, err := exec.CommandContext(t.Context(), "curl", "-sS", "--fail", "--max-time", "30", "--cacert", ca.File,
		"--connect-to", "::"+p.Secure, "https://"+host+path).Output()
	return string(out), err
}

// cache is where test/install and test/traefik/build leave what takes long to make.
func cache() string {
	if os.Geteuid() == 0 {
		return "/var/cache/webspaced-test"
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "webspaced-test")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "webspaced-test")
}

// log is what a process printed.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}
