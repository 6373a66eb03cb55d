// Package runtimetest tells whether a [webspace.Runtime] keeps its promises, and has one in memory for tests of what is
// built on runtimes.
//
// A runtime's own test runs the suite:
//
//	func TestRuntime(t *testing.T) {
//		runtimetest.Run(t, runtimetest.Harness{
//			New:     func(t *testing.T) webspace.Runtime { return myruntime.New(t.TempDir()) },
//			Image:   "hello",
//			Watcher: true,
//		})
//	}
//
// [Fake] passes it, and stands in for a runtime where faults are to be produced at will.
package runtimetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

// Harness is a runtime to test, and what the suite may expect of it.
type Harness struct {
	// New returns the runtime for one subtest. What has to be closed is closed by t.Cleanup, which runs after the
	// suite has deleted its instances.
	New func(t *testing.T) webspace.Runtime
	// Image is what instances are created from. It boots by itself and stops on request.
	Image string
	// Prefix begins the names of all instances that the suite makes, and of nobody else's. Default: "rt-".
	Prefix string
	// Grace is how long the image may take to shut down. Default: 5 seconds.
	Grace time.Duration
	// Timeout is how long anything may take that ought to happen soon. Default: 30 seconds.
	Timeout time.Duration

	// The optional interfaces that the runtime must have; it must not have the others, or they would go untested.
	Watcher, Imager, Execer, Consoler, Logger bool

	// Prints: the image prints something on its console when it boots.
	Prints bool
	// Console is what a shell appends to so that it shows on the console. Default: /dev/console.
	Console string
	// Listens: the image has a shell on its console.
	Listens bool
	// Users: commands can run as any user of the image.
	Users bool
	// Shell runs a script that is added as the last argument. Default: /bin/sh -c. Besides, the image has cat, id,
	// printenv, pwd, sleep, stty and yes.
	Shell []string
}

// Run runs the suite: a subtest for each promise, each with a fresh runtime.
func Run(t *testing.T, h Harness) {
	if h.Prefix == "" {
		h.Prefix = "rt-"
	}
	if h.Grace == 0 {
		h.Grace = 5 * time.Second
	}
	if h.Timeout == 0 {
		h.Timeout = 30 * time.Second
	}
	if h.Shell == nil {
		h.Shell = []string{"/bin/sh", "-c"}
	}
	if h.Console == "" {
		h.Console = "/dev/console"
	}
	tests := append(lifeTests, recordTests...)
	tests = append(tests, contextTests...)
	if h.Watcher {
		tests = append(tests, watchTests...)
	}
	if h.Execer {
		tests = append(tests, execTests...)
	}
	if h.Consoler {
		tests = append(tests, consoleTests...)
	}
	if h.Logger {
		tests = append(tests, subtest{"Log", testLog})
	}
	if h.Imager {
		tests = append(tests, subtest{"Images", testImages})
	}
	tests = append(tests, subtest{"Interfaces", testInterfaces})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*h.Timeout)
			defer cancel()
			test.run(&suite{T: t, h: h, ctx: ctx, rt: h.New(t), id: rand.Uint32()})
		})
	}
}

type subtest struct {
	name string
	run  func(*suite)
}

// suite is one subtest at work.
type suite struct {
	*testing.T
	h    Harness
	ctx  context.Context
	rt   webspace.Runtime
	id   uint32
	made int
}

// name makes up an instance, and sees to it that none of that name is left in the end.
func (s *suite) name() string {
	s.Helper()
	s.made++
	name := fmt.Sprintf("%s%08x-%d", s.h.Prefix, s.id, s.made)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.h.Timeout)
		defer cancel()
		err := s.retry(ctx, func() error { return s.rt.Stop(ctx, name, 0) })
		if err == nil {
			err = s.retry(ctx, func() error { return s.rt.Delete(ctx, name) })
		}
		if err != nil && !errdefs.IsNotFound(err) {
			s.Errorf("instance %s can not be deleted at the end: %v", name, err)
		}
	})
	return name
}

// create makes an instance with a record.
func (s *suite) create(record string) string {
	s.Helper()
	name := s.name()
	s.ok("Create", func() error {
		return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: s.h.Image, Record: []byte(record)})
	})
	return name
}

// running makes an instance that runs.
func (s *suite) running() string {
	s.Helper()
	name := s.create("{}")
	s.start(name)
	return name
}

func (s *suite) start(name string) {
	s.Helper()
	s.ok("Start", func() error { return s.rt.Start(s.ctx, name) })
}

func (s *suite) stop(name string) {
	s.Helper()
	s.ok("Stop", func() error { return s.rt.Stop(s.ctx, name, s.h.Grace) })
}

func (s *suite) delete(name string) {
	s.Helper()
	s.ok("Delete", func() error { return s.rt.Delete(s.ctx, name) })
}

func (s *suite) get(name string) (instance webspace.Instance) {
	s.Helper()
	s.ok("Get", func() (err error) { instance, err = s.rt.Get(s.ctx, name); return err })
	require.Equal(s, name, instance.Name, "Get")
	return instance
}

func (s *suite) state(name string) (state webspace.State) {
	s.Helper()
	s.ok("State", func() (err error) { state, err = s.rt.State(s.ctx, name); return err })
	return state
}

// list returns the instances that begin with prefix, by name.
func (s *suite) list(prefix string) map[string]webspace.Instance {
	s.Helper()
	var list []webspace.Instance
	s.ok("List", func() (err error) { list, err = s.rt.List(s.ctx, prefix); return err })
	byName := map[string]webspace.Instance{}
	for _, i := range list {
		byName[i.Name] = i
	}
	require.Len(s, byName, len(list), "List: a name is there twice")
	return byName
}

// status requires an instance to have a status, for Get, List and State alike.
func (s *suite) status(name string, want webspace.Status) {
	s.Helper()
	require.Equal(s, want, s.get(name).Status, "Get")
	require.Equal(s, want, s.list(name)[name].Status, "List")
	require.Equal(s, want, s.state(name).Status, "State")
}

// address waits for the address of a running instance.
func (s *suite) address(name string) (address netip.Addr) {
	s.Helper()
	s.eventually("it has an address", func() bool {
		address = s.get(name).Address
		return address.IsValid()
	})
	require.False(s, address.IsUnspecified() || address.IsMulticast(), "address %s", address)
	return address
}

// retry calls f again while it returns Conflict: any call may do so when the instance is busy.
func (s *suite) retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errdefs.IsConflict(err) || ctx.Err() != nil {
			return err
		}
		time.Sleep(5*time.Millisecond + rand.N(10*time.Millisecond))
	}
}

func (s *suite) ok(op string, f func() error) {
	s.Helper()
	require.NoError(s, s.retry(s.ctx, f), op)
}

// class requires the error of f to be of a class, given by errdefs's question for it.
func (s *suite) class(is func(error) bool, op string, f func() error) {
	s.Helper()
	err := s.retry(s.ctx, f)
	require.Error(s, err, op)
	require.True(s, is(err), "%s: the error is of another class: %v", op, err)
}

func (s *suite) eventually(what string, f func() bool) {
	s.Helper()
	for deadline := time.Now().Add(s.h.Timeout); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(s, "not within "+s.h.Timeout.String()+": "+what)
		}
	}
}

// soon requires f to return before long. One that does not goes on: there is no other way to be rid of it.
func (s *suite) soon(what string, f func() error) error {
	s.Helper()
	result := make(chan error, 1)
	go func() { result <- f() }()
	select {
	case err := <-result:
		return err
	case <-time.After(s.h.Timeout):
		require.FailNow(s, "not within "+s.h.Timeout.String()+": "+what)
		return nil
	}
}

// settled waits until no more than the given number of goroutines is left.
func (s *suite) settled(limit int) {
	s.Helper()
	for deadline := time.Now().Add(s.h.Timeout); runtime.NumGoroutine() > limit; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			require.FailNow(s, "goroutines are left", "%d, not at most %d:\n%s", runtime.NumGoroutine(), limit,
				stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func testInterfaces(s *suite) {
	_, watcher := s.rt.(webspace.Watcher)
	_, imager := s.rt.(webspace.Imager)
	_, execer := s.rt.(webspace.Execer)
	_, consoler := s.rt.(webspace.Consoler)
	_, logger := s.rt.(webspace.Logger)
	require.Equal(s, s.h.Watcher, watcher, "Watcher")
	require.Equal(s, s.h.Imager, imager, "Imager")
	require.Equal(s, s.h.Execer, execer, "Execer")
	require.Equal(s, s.h.Consoler, consoler, "Consoler")
	require.Equal(s, s.h.Logger, logger, "Logger")
}

func testImages(s *suite) {
	images, err := s.rt.(webspace.Imager).Images(s.ctx)
	require.NoError(s, err)
	for _, image := range images {
		if image.Fingerprint == s.h.Image {
			return
		}
		for _, alias := range image.Aliases {
			if alias.Name == s.h.Image {
				return
			}
		}
	}
	require.Fail(s, "image "+s.h.Image+" is not listed")
}

func testLog(s *suite) {
	logger := s.rt.(webspace.Logger)
	name := s.running()
	read := func(limit int64) (log []byte) {
		s.ok("Log", func() (err error) { log, err = logger.Log(s.ctx, name, limit); return err })
		require.LessOrEqual(s, int64(len(log)), limit, "limit")
		return log
	}
	if s.h.Prints {
		s.eventually("the console log has something", func() bool { return len(read(1<<20)) > 3 })
	}
	s.stop(name)
	// The last words of an instance may come into the log a moment after it has stopped.
	s.eventually("the end is what a limit leaves", func() bool {
		log := read(1 << 20)
		return string(log[max(0, len(log)-3):]) == string(read(3))
	})
	s.ok("ClearLog", func() error { return logger.ClearLog(s.ctx, name) })
	require.Empty(s, read(1<<20), "after ClearLog")
}
