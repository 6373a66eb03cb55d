package webspace_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

var hello = webspace.CreateRequest{Image: "hello"}

func TestCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		got, err := w.Create(t.Context(), w.user(1000), hello)
		require.NoError(t, err)
		require.Equal(t, webspace.Webspace{
			User: 1000, Config: webspace.Config{StartupDelay: 3 * time.Second, HTTPPort: 80}, Ports: map[int]int{},
		}, got)
		again, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, got.Config, again.Config)
		require.Equal(t, webspace.StatusStopped, w.instance("ws-u1000").Status)
		target, err := w.Route("alice.example.test")
		require.NoError(t, err, "at once")
		require.Equal(t, alice, target)

		_, err = w.Create(t.Context(), w.user(1000), hello)
		require.True(t, errdefs.IsAlreadyExists(err))
		_, err = w.Create(t.Context(), w.user(1001), webspace.CreateRequest{Image: "nonesuch"})
		require.True(t, errdefs.IsNotFound(err))
		_, err = w.Create(t.Context(), identity.User{ID: 1003, Username: "ALICE"}, hello)
		require.True(t, errdefs.IsAlreadyExists(err), "it has the name of another one")
		w.settled()
		require.Len(t, w.Summaries(), 1)

		for _, user := range []identity.User{{ID: 0, Username: "zero"}, {ID: -1, Username: "minus"}, {ID: 5, Username: "not a label"}, {ID: 5}} {
			_, err := w.Create(t.Context(), user, hello)
			require.True(t, errdefs.IsInvalidArgument(err), user.Username)
		}
		for _, req := range []webspace.CreateRequest{
			{}, {Image: "../x"}, {Image: "a b"}, {Image: "a?project=b"}, {Image: "a\x00"}, {Image: "é"}, {Image: "hello", SSH: true}, {Image: "hello", Password: "x\ny"},
		} {
			_, err := w.Create(t.Context(), w.user(1001), req)
			require.True(t, errdefs.IsInvalidArgument(err), req.Image)
		}
	})
}

// Whichever call fails, before or after its work is done: the next creation makes one complete webspace.
func TestCreateIsResumable(t *testing.T) {
	type fault struct {
		op    string
		after bool
	}
	var faults []fault
	for _, op := range []string{"Get", "Create", "SetRecord", "Stop", "Delete"} {
		faults = append(faults, fault{op, false}, fault{op, true})
	}
	for _, f := range faults {
		for _, down := range []bool{false, true} { // from then on nothing works, as if the program were killed
			t.Run(fmt.Sprintf("%s after=%v down=%v", f.op, f.after, down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var armed, dead atomic.Bool
					lost := errors.Join(errors.New("lost"), errdefs.ErrUnavailable)
					hook := func(op string, after bool) error {
						if dead.Load() || armed.Load() && op == f.op && after == f.after {
							dead.Store(down)
							return lost
						}
						return nil
					}
					w := newWorld(t, func(_ *world, o *runtimetest.FakeOptions) {
						o.Before = func(_ context.Context, op, _ string) error { return hook(op, false) }
						o.After = func(_ context.Context, op, _ string, err error) error {
							return cmp.Or(hook(op, true), err)
						}
					})
					w.settled()
					if f.op == "Stop" || f.op == "Delete" { // they happen when something is left
						w.runtime.Put(webspace.Instance{Name: "ws-u1000", Record: []byte(`{"user":1000,"instance":"ws-u1000","creating":true}`)})
						_, err := w.Get(t.Context(), 1000)
						require.True(t, errdefs.IsNotFound(err))
						w.settled()
						require.Contains(t, w.summary(1000).Problem, "not finished")
					}
					armed.Store(true)
					_, first := w.Create(t.Context(), w.user(1000), hello)
					armed.Store(false)
					dead.Store(false)
					if first != nil {
						complete := f.op == "SetRecord" && f.after && down // but nobody could know
						w.settled()
						require.Equal(t, complete, w.backend("ws-u1000") != "")
						w.stop()
						w.start()
						_, err := w.Create(t.Context(), w.user(1000), hello)
						require.Equal(t, complete, errdefs.IsAlreadyExists(err), "%v", err)
						require.Equal(t, complete, err != nil)
					}
					got, err := w.Get(t.Context(), 1000)
					require.NoError(t, err)
					require.EqualValues(t, 1000, got.User)
					w.settled()
					require.Len(t, w.Summaries(), 1)
					require.Equal(t, gatewayURL, w.backend("ws-u1000"))
					require.NoError(t, <-w.first(t.Context(), alice))
				})
			})
		}
	}
}

func TestCreateIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				if op == "SetRecord" {
					cancel() // the client leaves
				}
				return nil
			}
		})
		_, err := w.Create(ctx, w.user(1000), hello)
		require.ErrorIs(t, err, context.Canceled)
		_, err = w.runtime.Get(t.Context(), "ws-u1000")
		require.True(t, errdefs.IsNotFound(err), "nothing is left")
	})
}

func TestForeignInstancesAreNotTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, f *runtimetest.FakeOptions) {
			f.Before = func(_ context.Context, op, _ string) error {
				switch op {
				case "Create", "Delete", "Stop", "Start", "Restart", "SetRecord":
					t.Errorf("%s", op)
				}
				return nil
			}
		})
		records := map[string][]byte{"none": nil, "text": []byte("hello"), "of another user": []byte(`{"user":7}`), "of another instance": []byte(`{"user":1000,"instance":"x","creating":true}`)}
		for what, record := range records {
			w.runtime.Put(webspace.Instance{Name: "ws-u1000", Status: webspace.StatusRunning, Record: record})
			w.settled()
			port := 81
			_, err := w.Create(t.Context(), w.user(1000), hello)
			require.True(t, errdefs.IsAlreadyExists(err), what)
			for call, err := range map[string]error{
				"Delete": w.Delete(t.Context(), 1000), "Start": w.Start(t.Context(), 1000), "Stop": w.Stop(t.Context(), 1000),
				"Restart": w.Restart(t.Context(), 1000), "AddDomain": w.AddDomain(t.Context(), 1000, "a.example.org"),
				"RemovePort": w.RemovePort(t.Context(), 1000, 60000),
				"SetConfig":  second(w.SetConfig(t.Context(), 1000, webspace.ConfigChange{HTTPPort: &port})),
				"AddPort":    second(w.AddPort(t.Context(), 1000, 0, 22)), "Get": second(w.Get(t.Context(), 1000)), "State": second(w.State(t.Context(), 1000)),
			} {
				require.True(t, errdefs.IsFailedPrecondition(err), "%s %s: %v", call, what, err)
			}
			require.True(t, errdefs.IsNotFound(second(w.Activate(t.Context(), alice))))
			require.Contains(t, w.summary(1000).Problem, "quarantined", what)
			require.Empty(t, w.backend("ws-u1000"))
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestQuarantineIsForOneAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { populate(w, 50) })
		fill(w, 50)
		w.settled()
		bad := map[int]string{3: `{"user":2003`, 7: `{"user":2008}`, 9: `{"user":2009,"instance":"ws-u2010"}`, 11: `null`, 13: fmt.Sprintf(`{"user":2013,"x":%q}`, make([]byte, 40<<10))}
		for n, record := range bad {
			require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u"+webspaceUser(n).String(), []byte(record), ""))
		}
		w.settled()
		for range 2 {
			for n := range 50 {
				name := fmt.Sprintf("user%d.example.test", n)
				target, err := w.Route(name)
				if bad[n] != "" {
					require.True(t, errdefs.IsNotFound(err))
					require.Contains(t, w.summary(webspaceUser(n)).Problem, "quarantined")
					require.Empty(t, w.backend("ws-u"+webspaceUser(n).String()))
					continue
				}
				require.NoError(t, err)
				require.Empty(t, w.summary(webspaceUser(n)).Problem)
				require.Equal(t, gatewayURL, w.backend(target.Webspace))
			}
			w.stop()
			w.start()
			w.settled()
		}
		require.NoError(t, w.runtime.SetRecord(t.Context(), "ws-u2003", []byte(`{"user":2003}`), ""))
		w.settled()
		require.Empty(t, w.summary(2003).Problem)
		require.Equal(t, gatewayURL, w.backend("ws-u2003"))
	})
}

func TestCreateAndDeleteAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slowBoots)
		var wg sync.WaitGroup
		var created, deleted atomic.Int32
		for n := range 40 {
			wg.Go(func() {
				time.Sleep(time.Duration(n) * time.Millisecond)
				if n%2 == 0 {
					switch _, err := w.Create(t.Context(), w.user(1000), hello); {
					case err == nil:
						created.Add(1)
					case !errdefs.IsAlreadyExists(err):
						t.Error(err)
					}
					return
				}
				switch err := w.Delete(t.Context(), 1000); {
				case err == nil:
					deleted.Add(1)
				case !errdefs.IsNotFound(err):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		w.settled()
		require.EqualValues(t, created.Load()-deleted.Load(), len(w.Summaries()))
	})
}
