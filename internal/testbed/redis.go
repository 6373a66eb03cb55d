package testbed

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// RedisServer is a running Redis.
type RedisServer struct {
	// Address is where it listens on the loopback. It stays the same over Restart.
	Address string

	args  []string
	dir   string
	log   *log
	cmd   *exec.Cmd
	ended chan struct{}
}

// Redis starts a Redis of the test's own, with these flags. It keeps nothing over a restart unless they say so
// ("--appendonly", "yes"), and talks TLS alone if "--tls-cert-file" is among them. It ends with the test.
func Redis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		missing(t, "needs redis-server: on Debian, test/install installs it")
	}
	r := &RedisServer{dir: t.TempDir(), log: &log{}}
	t.Cleanup(func() {
		r.Kill()
		if t.Failed() {
			t.Logf("Redis said:\n%s", r.log)
		}
	})
	// Another process can take the port between our finding it and Redis' listening on it.
	var err error
	for range 3 {
		r.Address = Addresses(t, 1)[0]
		_, port, _ := strings.Cut(r.Address, ":")
		r.args = []string{"--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--save", "", "--enable-debug-command", "local"}
		if slices.Contains(args, "--tls-cert-file") {
			r.args = append(r.args, "--port", "0", "--tls-port", port)
		}
		r.args = append(r.args, args...)
		if err = r.start(); err == nil {
			return r
		}
		r.Kill()
	}
	t.Fatalf("Redis does not start: %v\n%s", err, r.log)
	return nil
}

func (r *RedisServer) start() error {
	r.cmd = exec.Command("redis-server", r.args...)
	r.cmd.Dir = r.dir
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.SysProcAttr = ownGroup()
	if err := r.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	r.ended = ended
	go func(cmd *exec.Cmd) {
		cmd.Wait()
		close(ended)
	}(r.cmd)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		// It listens before it has read what it keeps, and refuses commands until then.
		if conn, err := net.Dial("tcp", r.Address); err == nil {
			conn.Close()
			if strings.Contains(r.log.String(), "Ready to accept connections") {
				return nil
			}
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return errors.New("no answer")
}

// Kill kills Redis, as a crash would.
func (r *RedisServer) Kill() {
	if r.ended == nil {
		return
	}
	r.cmd.Process.Signal(os.Kill)
	<-r.ended
}

// Restart starts Redis again, after killing it if it runs, and returns when it takes commands.
func (r *RedisServer) Restart(t testing.TB) {
	t.Helper()
	r.Kill()
	r.log.reset()
	if err := r.start(); err != nil {
		t.Fatalf("Redis does not start again: %v\n%s", err, r.log)
	}
}
