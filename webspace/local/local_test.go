//go:build linux

package local_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/local"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestMain(m *testing.M) {
	local.Main()
	if dir := os.Getenv(daemonVariable); dir != "" {
		os.Exit(daemon(dir))
	}
	os.Exit(m.Run())
}

const daemonVariable = "LOCAL_TEST_DAEMON"

// daemon starts an instance and is then killed by the test.
func daemon(dir string) int {
	r, err := local.New(dir, nil)
	if err == nil {
		err = r.Create(context.Background(), "a", webspace.CreateOptions{Image: "hello", Record: []byte("kept")})
	}
	if err == nil {
		err = r.Start(context.Background(), "a")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	time.Sleep(time.Minute)
	return 1
}

func open(t testing.TB, dir string, opts *local.Options) *local.Runtime {
	t.Helper()
	r, err := local.New(dir, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func TestRuntime(t *testing.T) {
	runtimetest.Run(t, runtimetest.Harness{
		New:     func(t *testing.T) webspace.Runtime { return open(t, t.TempDir(), nil) },
		Image:   "hello",
		Watcher: true, Imager: true, Execer: true, Consoler: true, Logger: true,
		Console: "$WEBSPACE_DIRECTORY/console.log",
		Prints:  true,
		Users:   os.Geteuid() == 0,
	})
}

// try starts an instance of an image and waits until it has printed something.
func try(t *testing.T, r *local.Runtime, name, image string) webspace.Instance {
	t.Helper()
	require.NoError(t, r.Create(t.Context(), name, webspace.CreateOptions{Image: image, Record: []byte("{}")}))
	require.NoError(t, r.Start(t.Context(), name))
	t.Cleanup(func() { _ = r.Stop(context.Background(), name, 0) })
	eventually(t, func() bool {
		log, err := r.Log(t.Context(), name, 1000)
		return err == nil && len(log) > 0
	})
	i, err := r.Get(t.Context(), name)
	require.NoError(t, err)
	return i
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	// Not require.Eventually: it has goroutines of its own.
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "it does not come to pass")
	}
}

func status(t *testing.T, r *local.Runtime, name string) webspace.Status {
	t.Helper()
	i, err := r.Get(t.Context(), name)
	require.NoError(t, err)
	return i.Status
}

// pid is that of an instance's process, from the file that the runtime keeps.
func pid(t *testing.T, dir, name string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name, "process.json"))
	require.NoError(t, err)
	var process struct{ PID int }
	require.NoError(t, json.Unmarshal(content, &process))
	require.Positive(t, process.PID)
	return process.PID
}

// left counts the living processes that have a directory in their environment.
func left(t *testing.T, dir string) (count int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, file := range files {
		if environment, err := os.ReadFile(file); err == nil && bytes.Contains(environment, []byte("DIRECTORY="+dir)) {
			count++
		}
	}
	return count
}

// shell are images that need no more than a shell.
var shell = &local.Options{Images: map[string]local.Image{
	"sleeper":  {Command: []string{"sh", "-c", "echo up; exec sleep 1000"}},
	"stubborn": {Command: []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"}},
	"family":   {Command: []string{"sh", "-c", "sleep 1000 & setsid sleep 1000 & echo up; wait"}},
	"talker":   {Command: []string{"sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done"}},
	"printenv": {Command: []string{"sh", "-c", "env; exec sleep 1000"}, Env: map[string]string{"COLOUR": "blue"}},
	"files":    {Command: []string{"sh", "-c", "cat site/a.txt; exec sleep 1000"}, Files: map[string]string{"site/a.txt": "content\n"}},
}}

func TestHelloIsASite(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, &local.Options{Ports: []uint16{8080}})
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (code int, body string) {
		i, err := r.Get(t.Context(), "alice")
		require.NoError(t, err)
		var response *http.Response
		eventually(t, func() bool {
			request, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+i.Address.String()+":8080"+path, nil)
			require.NoError(t, err)
			request.Host = "alice.localhost:8081"
			response, err = client.Do(request)
			return err == nil
		})
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(content)
	}
	try(t, r, "alice", "hello")
	_, body := get("/")
	require.Contains(t, body, "This is alice.localhost<")
	require.Contains(t, body, "<dt>Boots</dt><dd>1</dd>")
	require.NotContains(t, body, "://", "no asset from elsewhere")
	require.NoError(t, r.Restart(t.Context(), "alice", 5*time.Second))
	_, body = get("/")
	require.Contains(t, body, "<dt>Boots</dt><dd>2</dd>")
	code, _ := get("/other")
	require.Equal(t, http.StatusNotFound, code)

	site := filepath.Join(dir, "alice", "home", "site")
	require.NoError(t, os.Mkdir(site, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(site, "index.html"), []byte("<p>mine"), 0o644))
	require.NoError(t, os.Symlink(filepath.Join(dir, "alice", "instance.json"), filepath.Join(site, "leak")))
	_, body = get("/")
	require.Equal(t, "<p>mine", body)
	code, body = get("/leak")
	require.NotEqual(t, http.StatusOK, code, body)

	require.NoError(t, r.Stop(t.Context(), "alice", 5*time.Second))
	log, err := r.Log(t.Context(), "alice", 1<<20)
	require.NoError(t, err)
	require.Contains(t, string(log), "GET alice.localhost:8081 \"/\" from 127.")
	require.Contains(t, string(log), "good bye", "it ends by itself when asked to")
}

func TestNothingOfTheDaemonIsInTheEnvironment(t *testing.T) {
	t.Setenv("SECRET_TOKEN", "canary")
	r := open(t, t.TempDir(), shell)
	i := try(t, r, "a", "printenv")
	var out bytes.Buffer
	_, err := r.Exec(t.Context(), "a", webspace.ExecOptions{Command: []string{"env"}, Stdout: &out})
	require.NoError(t, err)
	log, err := r.Log(t.Context(), "a", 1<<20)
	require.NoError(t, err)
	for _, env := range []string{string(log), out.String()} {
		require.NotContains(t, env, "canary")
		require.Contains(t, env, "ADDRESS="+i.Address.String()+"\n")
		require.Contains(t, env, "NAME=a\n")
		require.Contains(t, env, "COLOUR=blue\n")
	}
}

func TestFilesOfTheImage(t *testing.T) {
	r := open(t, t.TempDir(), shell)
	try(t, r, "a", "files")
	log, err := r.Log(t.Context(), "a", 1000)
	require.NoError(t, err)
	require.Equal(t, "content\n", string(log))
}

func TestStopKillsWhatDoesNotEnd(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shell)
	try(t, r, "a", "stubborn")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.Stop(ctx, "a", time.Hour), context.DeadlineExceeded)
	require.Equal(t, webspace.StatusRunning, status(t, r, "a"))
	require.NoError(t, r.Stop(t.Context(), "a", 50*time.Millisecond))
	require.Equal(t, webspace.StatusStopped, status(t, r, "a"))
	require.Zero(t, left(t, dir))
}

func TestStopLeavesNoProcess(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shell)
	try(t, r, "a", "family")
	eventually(t, func() bool {
		state, err := r.State(t.Context(), "a")
		return err == nil && state.Processes >= 3
	})
	_, err := r.Exec(t.Context(), "a", webspace.ExecOptions{Command: []string{"sh", "-c", "setsid sleep 1000 & exit 0"}})
	require.NoError(t, err)
	require.NoError(t, r.Stop(t.Context(), "a", time.Minute))
	require.Zero(t, left(t, dir), "not even one that has left the process group")
}

func TestCrashIsNoticed(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shell)
	try(t, r, "a", "family")
	events := make(chan webspace.Event, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = r.Watch(ctx, func(e webspace.Event) { events <- e }) }()
	require.Equal(t, webspace.Event{}, <-events)
	require.NoError(t, syscall.Kill(pid(t, dir, "a"), syscall.SIGKILL))
	require.Equal(t, webspace.Event{Instance: "a"}, <-events)
	require.Equal(t, webspace.StatusStopped, status(t, r, "a"))
	require.Zero(t, left(t, dir), "its children end with it")
	require.NoError(t, r.Start(t.Context(), "a"))
}

func TestInstancesOutliveTheRuntime(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, shell)
	before := try(t, first, "a", "sleeper")
	try(t, first, "b", "sleeper")
	try(t, first, "c", "family")
	state, err := first.State(t.Context(), "a")
	require.NoError(t, err)

	_, err = local.New(dir, shell)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "one at a time")
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	require.NoError(t, first.Close())
	require.NoError(t, first.Close())
	_, err = first.Get(t.Context(), "a")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.NoError(t, syscall.Kill(pid(t, dir, "c"), syscall.SIGKILL)) // while nobody looks

	second := open(t, dir, shell)
	after, err := second.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, before, after)
	again, err := second.State(t.Context(), "a")
	require.NoError(t, err)
	require.True(t, state.StartedAt.Equal(again.StartedAt), "it is the same process")
	require.Equal(t, webspace.StatusStopped, status(t, second, "c"))
	require.NoError(t, syscall.Kill(pid(t, dir, "b"), syscall.SIGKILL))
	eventually(t, func() bool { return status(t, second, "b") == webspace.StatusStopped })
	require.NoError(t, second.Stop(t.Context(), "a", time.Minute))
	require.Zero(t, left(t, dir))
}

func TestInstancesOutliveTheProgram(t *testing.T) {
	program, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), daemonVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line := make([]byte, 100)
	n, _ := out.Read(line)
	require.Equal(t, "started\n", string(line[:n]))
	_, err = local.New(dir, nil)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, strconv.Itoa(cmd.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()

	r := open(t, dir, nil)
	i, err := r.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, webspace.StatusRunning, i.Status)
	require.Equal(t, "kept", string(i.Record))
	require.NoError(t, syscall.Kill(pid(t, dir, "a"), syscall.SIGKILL))
	eventually(t, func() bool { return status(t, r, "a") == webspace.StatusStopped })
	require.NoError(t, r.Start(t.Context(), "a"))
	require.NoError(t, r.Stop(t.Context(), "a", time.Minute))
	require.Zero(t, left(t, dir))
}

func TestProcessOfAnotherIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shell)
	try(t, r, "a", "sleeper")
	try(t, r, "b", "sleeper")
	require.NoError(t, r.Close())
	other := exec.Command("sleep", "1000")
	require.NoError(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()

	// As if the host had given the ID to others since: once to a stranger, once to another instance.
	file := filepath.Join(dir, "a", "process.json")
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	id := strconv.Itoa(pid(t, dir, "a"))
	for _, foreign := range []int{other.Process.Pid, pid(t, dir, "b")} {
		replaced := strings.Replace(string(content), id, strconv.Itoa(foreign), 1)
		require.NoError(t, os.WriteFile(file, []byte(replaced), 0o600))
		r = open(t, dir, shell)
		require.Equal(t, webspace.StatusStopped, status(t, r, "a"))
		require.Equal(t, webspace.StatusRunning, status(t, r, "b"))
		require.NoError(t, r.Stop(t.Context(), "a", 0))
		require.NoError(t, other.Process.Signal(syscall.Signal(0)))
		require.NoError(t, r.Close())
	}
	require.Equal(t, 1, left(t, dir), "the process of a, of which nobody was told, is gone")
	r = open(t, dir, shell)
	require.NoError(t, r.Stop(t.Context(), "b", 0))
}

func TestBrokenInstance(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, shell)
	for _, name := range []string{"cut", "copied", "missing", "foreign", "good"} {
		try(t, r, name, "sleeper")
	}
	require.NoError(t, r.Close())
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name, "instance.json"), []byte(content), 0o600))
	}
	content, err := os.ReadFile(filepath.Join(dir, "good", "instance.json"))
	require.NoError(t, err)
	write("cut", string(content[:20]))
	write("copied", string(content))
	write("foreign", `{"Name":"foreign","Image":"sleeper","Address":"8.8.8.8"}`)
	require.NoError(t, os.Remove(filepath.Join(dir, "missing", "instance.json")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, ".new-123"), 0o700))

	r = open(t, dir, shell)
	list, err := r.List(t.Context(), "")
	require.NoError(t, err)
	require.Len(t, list, 5)
	require.Equal(t, webspace.StatusRunning, status(t, r, "good"))
	for _, name := range []string{"cut", "copied", "missing", "foreign"} {
		require.Equal(t, webspace.StatusError, status(t, r, name))
		require.ErrorIs(t, r.Start(t.Context(), name), errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, r.SetRecord(t.Context(), name, nil, ""), errdefs.ErrFailedPrecondition)
		_, err := r.State(t.Context(), name)
		require.NoError(t, err)
		require.NoError(t, r.Stop(t.Context(), name, 0))
		require.NoError(t, r.Delete(t.Context(), name))
	}
	require.NoError(t, r.Stop(t.Context(), "good", 0))
	require.Zero(t, left(t, dir))
	require.NoDirExists(t, filepath.Join(dir, ".new-123"))
}

func TestLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, &local.Options{Images: shell.Images, LogSize: 10_000})
	try(t, r, "a", "talker")
	file := filepath.Join(dir, "a", "console.log")
	last, shrunk := int64(0), 0
	eventually(t, func() bool {
		info, err := os.Stat(file)
		require.NoError(t, err)
		if info.Size() < last {
			shrunk++
		}
		last = info.Size()
		return shrunk > 1
	})
	require.NoError(t, r.Stop(t.Context(), "a", time.Minute))
}

func TestAddressesDoNotRunOut(t *testing.T) {
	r := open(t, t.TempDir(), &local.Options{Images: shell.Images, Addresses: netip.MustParsePrefix("127.130.0.0/29")})
	for n := range 7 { // .0 is nobody's
		require.NoError(t, r.Create(t.Context(), fmt.Sprint("a", n), webspace.CreateOptions{Image: "sleeper"}))
	}
	err := r.Create(t.Context(), "b", webspace.CreateOptions{Image: "sleeper"})
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.NoError(t, r.Delete(t.Context(), "a3"))
	require.NoError(t, r.Create(t.Context(), "b", webspace.CreateOptions{Image: "sleeper"}))
	_, err = local.New(t.TempDir(), &local.Options{Addresses: netip.MustParsePrefix("10.0.0.0/8")})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestNothingIsLeftAfterManyLifecycles(t *testing.T) {
	rounds := 500
	if testing.Short() {
		rounds = 20
	}
	dir := t.TempDir()
	r := open(t, dir, shell)
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	try(t, r, "warm", "sleeper")
	require.NoError(t, r.Stop(t.Context(), "warm", 0))
	goroutines, open := runtime.NumGoroutine(), descriptors()
	for n := range rounds {
		name := fmt.Sprint("a", n%3)
		require.NoError(t, r.Create(t.Context(), name, webspace.CreateOptions{Image: "family"}))
		require.NoError(t, r.Start(t.Context(), name))
		if n%10 == 0 {
			code, err := r.Exec(t.Context(), name, webspace.ExecOptions{
				Command: []string{"true"}, Terminal: &webspace.Terminal{Width: 80, Height: 25},
			})
			require.NoError(t, err)
			require.Zero(t, code)
		}
		require.NoError(t, r.Stop(t.Context(), name, time.Duration(n%2)*time.Minute))
		require.NoError(t, r.Delete(t.Context(), name))
	}
	eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines && descriptors() <= open })
	require.Zero(t, left(t, dir))
	_, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	require.ErrorIs(t, err, syscall.ECHILD, "not even a zombie")
}
