package runtimetest

import (
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
)

var lifeTests = []subtest{
	{"Create", testCreate},
	{"CreateTwice", testCreateTwice},
	{"CreateUnknownImage", testCreateUnknownImage},
	{"ListPrefix", testListPrefix},
	{"NotFound", testNotFound},
	{"Start", testStart},
	{"StartConcurrently", testStartConcurrently},
	{"Stop", testStop},
	{"StopAtOnce", testStopAtOnce},
	{"Restart", testRestart},
	{"Delete", testDelete},
	{"Address", testAddress},
	{"State", testState},
	{"Conflicts", testConflicts},
	{"Leaks", testLeaks},
}

func testCreate(s *suite) {
	name := s.create(`{"a":1}`)
	i := s.get(name)
	require.Equal(s, webspace.StatusStopped, i.Status)
	require.Equal(s, `{"a":1}`, string(i.Record))
	require.NotEmpty(s, i.Revision)
	require.Equal(s, i, s.list(name)[name], "List and Get say the same")
	s.status(name, webspace.StatusStopped)
}

func testCreateTwice(s *suite) {
	name := s.create("first")
	s.class(errdefs.IsAlreadyExists, "Create", func() error {
		return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: s.h.Image, Record: []byte("second")})
	})
	require.Equal(s, "first", string(s.get(name).Record), "the one that was there is left alone")
}

func testCreateUnknownImage(s *suite) {
	name := s.name()
	for _, image := range []string{"no-such-image", "", "../" + s.h.Image} {
		s.class(errdefs.IsNotFound, "Create", func() error {
			return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: image})
		})
	}
	if _, err := s.rt.Get(s.ctx, name); !errdefs.IsNotFound(err) {
		require.NoError(s, err, "Get works on what is left")
		s.delete(name)
	}
}

func testListPrefix(s *suite) {
	one := s.create("one")
	two := s.create("two")
	require.Contains(s, s.list(s.h.Prefix), one)
	require.Contains(s, s.list(s.h.Prefix), two)
	require.Len(s, s.list(two), 1)
	require.Equal(s, "two", string(s.list(two)[two].Record))
	require.Len(s, s.list(one[:len(one)-1]), 2)
	require.Empty(s, s.list(one+"-"))
	require.Empty(s, s.list(one[1:]), "what only contains the prefix does not count")
	s.delete(one)
	require.NotContains(s, s.list(s.h.Prefix), one)
	require.Contains(s, s.list(s.h.Prefix), two)
}

func testNotFound(s *suite) {
	for op, call := range s.calls(s.name()) {
		if op != "List" && op != "Create" {
			s.class(errdefs.IsNotFound, op, call)
		}
	}
}

func testStart(s *suite) {
	name := s.running()
	s.status(name, webspace.StatusRunning)
	before := s.state(name).StartedAt
	s.start(name)
	s.status(name, webspace.StatusRunning)
	require.Equal(s, before, s.state(name).StartedAt, "the second start does nothing")
}

func testStartConcurrently(s *suite) {
	name := s.create("{}")
	errs := make([]error, 10)
	var group sync.WaitGroup
	for n := range errs {
		group.Go(func() { errs[n] = s.retry(s.ctx, func() error { return s.rt.Start(s.ctx, name) }) })
	}
	group.Wait()
	for _, err := range errs {
		require.NoError(s, err)
	}
	s.status(name, webspace.StatusRunning)
}

func testStop(s *suite) {
	name := s.running()
	s.stop(name)
	s.status(name, webspace.StatusStopped)
	s.stop(name)
	s.status(name, webspace.StatusStopped)
	s.start(name)
	s.status(name, webspace.StatusRunning)
	var group sync.WaitGroup
	errs := make([]error, 3)
	for n := range errs {
		group.Go(func() { errs[n] = s.retry(s.ctx, func() error { return s.rt.Stop(s.ctx, name, s.h.Grace) }) })
	}
	group.Wait()
	for _, err := range errs {
		require.NoError(s, err)
	}
	s.status(name, webspace.StatusStopped)
}

func testStopAtOnce(s *suite) {
	name := s.running()
	s.ok("Stop", func() error { return s.rt.Stop(s.ctx, name, 0) })
	s.status(name, webspace.StatusStopped)
	s.start(name)
	s.status(name, webspace.StatusRunning)
}

func testRestart(s *suite) {
	name := s.create("kept")
	restart := func() error { return s.rt.Restart(s.ctx, name, s.h.Grace) }
	s.class(errdefs.IsFailedPrecondition, "Restart", restart)
	s.status(name, webspace.StatusStopped)
	s.start(name)
	before := s.state(name).StartedAt
	s.ok("Restart", restart)
	s.status(name, webspace.StatusRunning)
	if after := s.state(name).StartedAt; !before.IsZero() && !after.IsZero() {
		require.True(s, after.After(before), "started at %s, and after the restart at %s", before, after)
	}
	require.Equal(s, "kept", string(s.get(name).Record))
}

func testDelete(s *suite) {
	name := s.running()
	remove := func() error { return s.rt.Delete(s.ctx, name) }
	s.class(errdefs.IsFailedPrecondition, "Delete", remove)
	s.status(name, webspace.StatusRunning)
	s.stop(name)
	s.delete(name)
	s.class(errdefs.IsNotFound, "Delete", remove)
	require.Empty(s, s.list(name))
	s.ok("Create", func() error { return s.rt.Create(s.ctx, name, webspace.CreateOptions{Image: s.h.Image}) })
	require.Empty(s, s.get(name).Record, "nothing is left of the deleted one")
}

func testAddress(s *suite) {
	one, two := s.running(), s.running()
	addresses := map[netip.Addr]string{}
	for _, name := range []string{one, two} {
		address := s.address(name)
		require.Empty(s, addresses[address], "%s is the address of two", address)
		addresses[address] = name
	}
	for name, i := range s.list("") {
		if owner := addresses[i.Address]; owner != "" {
			require.Equal(s, owner, name, "%s is the address of two", i.Address)
		}
	}
	s.stop(one)
	s.start(one)
	require.NotEqual(s, s.address(one), s.address(two))
}

func testState(s *suite) {
	name := s.create("{}")
	stopped := func() {
		state := s.state(name)
		require.Empty(s, state.Disks)
		require.Empty(s, state.Interfaces)
		state.Disks, state.Interfaces = nil, nil
		require.Equal(s, webspace.State{Status: webspace.StatusStopped}, state)
	}
	stopped()
	s.start(name)
	s.eventually("it has a process", func() bool { return s.state(name).Processes > 0 })
	state := s.state(name)
	require.Equal(s, webspace.StatusRunning, state.Status)
	require.GreaterOrEqual(s, state.CPU, time.Duration(0))
	require.GreaterOrEqual(s, state.Memory, int64(0))
	require.NotContains(s, state.Interfaces, "lo")
	s.stop(name)
	stopped()
}

// testConflicts has several callers do different things to one instance. Some may fail, with the right class.
func testConflicts(s *suite) {
	name := s.create("{}")
	steps := []func() error{
		func() error { return s.rt.Start(s.ctx, name) },
		func() error { return s.rt.Stop(s.ctx, name, 0) },
		func() error {
			if err := s.rt.Restart(s.ctx, name, 0); !errdefs.IsFailedPrecondition(err) {
				return err
			}
			return nil // no other call has a reason to say so
		},
		func() error { return s.rt.SetRecord(s.ctx, name, []byte("new"), "") },
		func() error { _, err := s.rt.Get(s.ctx, name); return err },
		func() error { _, err := s.rt.State(s.ctx, name); return err },
	}
	errs := make(chan error, 3*len(steps))
	var group sync.WaitGroup
	for n := range steps {
		group.Go(func() {
			for k := range 3 {
				errs <- steps[(n+k)%len(steps)]()
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		if !errdefs.IsConflict(err) {
			require.NoError(s, err)
		}
	}
	s.get(name)
	s.stop(name)
	s.status(name, webspace.StatusStopped)
	s.delete(name)
}

func testLeaks(s *suite) {
	name := s.running() // first, so that connections are open
	s.stop(name)
	goroutines := runtime.NumGoroutine()
	for range 10 { // what is just ending does not count
		time.Sleep(10 * time.Millisecond)
		goroutines = min(goroutines, runtime.NumGoroutine())
	}
	for range 5 {
		s.start(name)
		s.get(name)
		s.ok("Stop", func() error { return s.rt.Stop(s.ctx, name, 0) })
	}
	s.settled(goroutines + 4) // fewer than one a round: connections come and go
}
