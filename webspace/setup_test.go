package webspace_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

const canary = "Tr0ub4dor:canary&3"

var withAll = webspace.CreateRequest{Image: "hello", Password: canary, SSH: true}

// system is a fake runtime whose instances can be set up. All that is run in them goes through run.
type system struct {
	*runtimetest.Fake
	run func(ctx context.Context, program string, out io.Writer) (int, error)

	mu     sync.Mutex
	argv   []string
	inputs map[string]string // by the last argument but for chpasswd
	env    []string
}

func (*system) Isolated() {}

func (s *system) Exec(ctx context.Context, name string, opts webspace.ExecOptions) (int, error) {
	if code, err := s.Fake.Exec(ctx, name, webspace.ExecOptions{Command: []string{"true"}}); code != 0 || err != nil {
		return code, err
	}
	program := "chpasswd"
	switch {
	case slices.Contains(opts.Command, "setup"):
		program = "install"
	case strings.Contains(strings.Join(opts.Command, " "), "authorized_keys"):
		program = "keys"
	}
	input, err := io.ReadAll(opts.Stdin)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.argv = append(s.argv, opts.Command...)
	s.inputs[program] = string(input)
	for name, value := range opts.Env {
		s.env = append(s.env, name+"="+value)
	}
	run := s.run
	s.mu.Unlock()
	if run == nil {
		return 0, nil
	}
	return run(ctx, program, opts.Stderr)
}

func (s *system) runs(run func(ctx context.Context, program string, out io.Writer) (int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run = run
}

// newSystem is a world whose runtime can set instances up, and where alice has an SSH key.
func newSystem(t testing.TB, change func(*world, *runtimetest.FakeOptions)) (*world, *system) {
	s := &system{inputs: make(map[string]string)}
	w := newWorld(t, func(w *world, f *runtimetest.FakeOptions) {
		w.wrap = func(fake *runtimetest.Fake) webspace.Runtime {
			s.Fake = fake
			return s
		}
		u := w.users.add(1000, "alice")
		u.SSHKeys = []string{publicKey(t)}
		w.users.users[1000] = u
		if change != nil {
			change(w, f)
		}
	})
	return w, s
}

// publicKey is a new one, in the format of authorized_keys, with a comment.
func publicKey(t testing.TB) string {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	key, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " alice@laptop"
}

func TestCreateWithSSHAndPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		w, s := newSystem(t, func(w *world, f *runtimetest.FakeOptions) {
			slowBoots(w, f)
			w.opts.Logger = slog.New(slog.NewJSONHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
			w.opts.Logger.Info("request", "request", withAll)
		})
		got, err := w.Create(t.Context(), w.user(1000), withAll)
		require.NoError(t, err)
		require.Len(t, got.Ports, 1)
		for external, internal := range got.Ports {
			require.Equal(t, 22, internal)
			require.GreaterOrEqual(t, external, 49152)
		}
		again, err := w.Get(t.Context(), 1000)
		require.NoError(t, err)
		require.Equal(t, got.Ports, again.Ports)
		require.Equal(t, webspace.StatusStopped, w.instance("ws-u1000").Status)
		require.NotContains(t, string(w.instance("ws-u1000").Record), "creating")
		require.Equal(t, "root:"+canary+"\n", s.inputs["chpasswd"])
		require.Equal(t, strings.TrimSuffix(w.user(1000).SSHKeys[0], " alice@laptop")+"\n", s.inputs["keys"])
		require.NoError(t, <-w.first(t.Context(), alice))
		w.settled()
		require.Empty(t, w.summary(1000).Problem)
		w.stop()

		key := strings.Fields(w.user(1000).SSHKeys[0])[1]
		for what, text := range map[string]string{
			"argv": strings.Join(s.argv, " "), "environment": strings.Join(s.env, " "), "log": logs.String(),
			"record": string(w.instance("ws-u1000").Record), "request": fmt.Sprintf("%v %+v %#v %s", withAll, withAll, withAll, withAll),
		} {
			require.NotContains(t, text, canary, what)
			require.NotContains(t, text, key, what)
		}
		require.Contains(t, logs.String(), "created")
	})
}

func TestCreateWithPasswordAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSystem(t, nil)
		got, err := w.Create(t.Context(), w.user(1001), webspace.CreateRequest{Image: "hello", Password: canary})
		require.NoError(t, err)
		require.Empty(t, got.Ports)
		require.Equal(t, []string{"chpasswd"}, s.argv)
		require.Zero(t, w.runtime.Calls("Restart"))
		require.Equal(t, webspace.StatusStopped, w.instance("ws-u1001").Status)
	})
}

// How an SSH server is installed depends on the image's property "os", in any case, whatever the image is called by.
func TestInstallBySystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for os, want := range map[string]string{
			"Alpine": "apk", "Archlinux": "pacman", "debian": "apt-get", "Ubuntu": "apt-get", "Fedora": "dnf", "CentOS": "yum", "": "", "plan9": "",
		} {
			w, s := newSystem(t, func(_ *world, f *runtimetest.FakeOptions) {
				f.Images = []webspace.Image{
					{Aliases: []webspace.ImageAlias{{Name: "other"}}, Fingerprint: strings.Repeat("1", 64), Properties: map[string]string{"os": "void"}},
					{Aliases: []webspace.ImageAlias{{Name: "hello"}}, Fingerprint: strings.Repeat("2", 64), Properties: map[string]string{"os": os}},
				}
			})
			for _, image := range []string{"hello", strings.Repeat("2", 64)} {
				_, err := w.Create(t.Context(), w.user(1000), webspace.CreateRequest{Image: image, SSH: true})
				require.NoError(t, err)
				install := s.argv[slices.Index(s.argv, "setup")+1]
				require.Contains(t, install, want)
				require.Equal(t, want == "", install == "")
				require.NoError(t, w.Delete(t.Context(), 1000))
				s.argv = nil
			}
			w.stop()
		}
	})
}

// What goes wrong in the instance is told, and nothing is left of it.
func TestSetupFailures(t *testing.T) {
	noise := strings.Repeat("line of noise\n", 1000)
	ends := func(program string, code int, prints string) func(context.Context, string, io.Writer) (int, error) {
		return func(_ context.Context, p string, out io.Writer) (int, error) {
			if p != program {
				return 0, nil
			}
			_, err := io.WriteString(out, prints)
			return code, err
		}
	}
	hangs := func(program string) func(context.Context, string, io.Writer) (int, error) {
		return func(ctx context.Context, p string, out io.Writer) (int, error) {
			if p != program {
				return 0, nil
			}
			_, _ = io.WriteString(out, "waiting for a lock")
			<-ctx.Done()
			return 0, ctx.Err()
		}
	}
	for name, test := range map[string]struct {
		run   func(context.Context, string, io.Writer) (int, error)
		class func(error) bool
		says  string
	}{
		"install fails":        {ends("install", 100, noise+"E: Unable to \x1b[31mlocate\x00 package\xff"), errdefs.IsFailedPrecondition, "E: Unable to [31mlocate package"},
		"no server":            {ends("install", 64, ""), errdefs.IsInvalidArgument, "alpine, archlinux, centos, debian, fedora, ubuntu"},
		"keys not stored":      {ends("keys", 1, "disk full"), errdefs.IsFailedPrecondition, "disk full"},
		"no chpasswd":          {ends("chpasswd", 127, ""), errdefs.IsInvalidArgument, "no chpasswd"},
		"chpasswd fails":       {ends("chpasswd", 1, "bad password: "+canary), errdefs.IsFailedPrecondition, "exit code 1"},
		"install takes ages":   {hangs("install"), errdefs.IsFailedPrecondition, "waiting for a lock"},
		"chpasswd takes ages":  {hangs("chpasswd"), errdefs.IsFailedPrecondition, "longer than 10m"},
		"the engine goes away": {func(context.Context, string, io.Writer) (int, error) { return 0, errdefs.ErrUnavailable }, errdefs.IsUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logs bytes.Buffer
				w, s := newSystem(t, func(w *world, _ *runtimetest.FakeOptions) {
					w.opts.Ports = webspace.PortRange{First: 50000, Last: 50000}
					w.opts.Logger = slog.New(slog.NewTextHandler(&logs, nil))
				})
				s.runs(test.run)
				_, err := w.Create(t.Context(), w.user(1000), withAll)
				require.True(t, test.class(err), "%v", err)
				require.ErrorContains(t, err, test.says)
				require.NotContains(t, err.Error(), canary)
				require.Less(t, len(err.Error()), 3000)
				_, err = w.runtime.Get(t.Context(), "ws-u1000")
				require.True(t, errdefs.IsNotFound(err), "nothing is left")
				w.settled()
				require.Empty(t, w.Summaries())

				s.runs(nil)
				got, err := w.Create(t.Context(), w.user(1000), withAll)
				require.NoError(t, err, "the one port is free again")
				require.Equal(t, map[int]int{50000: 22}, got.Ports)
				w.users.users[1001] = identity.User{ID: 1001, Username: "bob", SSHKeys: w.user(1000).SSHKeys}
				_, err = w.Create(t.Context(), w.user(1001), withAll)
				require.True(t, errdefs.IsResourceExhausted(err))
				w.stop()
				require.NotContains(t, logs.String(), canary)
			})
		})
	}
}

func TestSetupWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSystem(t, func(w *world, _ *runtimetest.FakeOptions) {
			w.opts.Probe = func(_ context.Context, at netip.AddrPort) error {
				if at.Port() == 22 {
					return errors.New("connection refused")
				}
				return nil
			}
		})
		_, err := w.Create(t.Context(), w.user(1000), withAll)
		require.True(t, errdefs.IsFailedPrecondition(err))
		require.ErrorContains(t, err, "port 22")
		_, err = w.runtime.Get(t.Context(), "ws-u1000")
		require.True(t, errdefs.IsNotFound(err))
	})
}

func TestSetupIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSystem(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		s.runs(func(ctx context.Context, _ string, _ io.Writer) (int, error) {
			cancel() // the client leaves
			<-ctx.Done()
			return 0, ctx.Err()
		})
		_, err := w.Create(ctx, w.user(1000), withAll)
		require.ErrorIs(t, err, context.Canceled)
		_, err = w.runtime.Get(t.Context(), "ws-u1000")
		require.True(t, errdefs.IsNotFound(err), "nothing is left")
	})
}

// Whichever call fails, before or after its work is done, and whatever works after it: the next creation makes one
// complete webspace.
func TestSetupIsResumable(t *testing.T) {
	for _, op := range []string{"Images", "Get", "Create", "Start", "Exec", "Restart", "Stop", "SetRecord"} {
		for nth := range int32(4) {
			for _, after := range []bool{false, true} {
				for _, down := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s %d after=%v down=%v", op, nth, after, down), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							var armed, dead atomic.Bool
							var count atomic.Int32
							hook := func(called string, isAfter bool) error {
								if dead.Load() || armed.Load() && called == op && isAfter == after && count.Add(1) == nth+1 {
									dead.Store(down)
									return errors.Join(errors.New("lost"), errdefs.ErrUnavailable)
								}
								return nil
							}
							w, _ := newSystem(t, func(_ *world, o *runtimetest.FakeOptions) {
								o.Before = func(_ context.Context, op, _ string) error { return hook(op, false) }
								o.After = func(_ context.Context, op, _ string, err error) error { return cmp.Or(hook(op, true), err) }
							})
							w.settled()
							armed.Store(true)
							_, first := w.Create(t.Context(), w.user(1000), withAll)
							armed.Store(false)
							w.settled()
							dead.Store(false) // whatever was under way has ended
							w.stop()
							w.start()
							_, err := w.Create(t.Context(), w.user(1000), withAll)
							if first == nil || op == "SetRecord" && after && down { // in the latter case nobody could know
								require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
							} else {
								require.NoError(t, err)
							}
							w.settled()
							got, err := w.Get(t.Context(), 1000)
							require.NoError(t, err)
							require.Len(t, got.Ports, 1)
							require.Empty(t, w.summary(1000).Problem)
							require.NoError(t, <-w.first(t.Context(), alice))
						})
					})
				}
			}
		}
	}
}

// Nothing is made of a request that can not be met.
func TestSetupIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := newSystem(t, nil)
		good := publicKey(t)
		dsa := "ssh-dss AAAAB3NzaC1kc3MAAACBAP1/U4EddRIpUt9KnC7s5Of2EbdSPO9EAMMeP4C2USZpRV1AIlH7WT2NWPq/xfW6MPbLm1Vs14E7gB00b/JmYLdrmVClpJ+f6AR7ECLCT7up1/63xhv4O1fnxqimFQ8E+4P208UewwI1VBNaFpEy9nXzrith1yrv8iIDGZ3RSAHHAAAAFQCXYFCPFSMLzLKSuYKi64QL8Fgc9QAAAIEA9+GghdabPd7LvKtcNrhXuXmUr7v6OuqC+VdMCz0HgmdRWVeOutRZT+ZxBxCBgLRJFnEj6EwoFhO3zwkyjMim4TwWeotUfI0o4KOuHiuzpnWRbqN/C/ohNWLx+2J6ASQ7zKTxvqhRkImog9/hWuWfBpKLZl6Ae1UlZAFMO/7PSSoAAACBAIdU0GQw2o4Jcg6xjYQnJ4aq4ULv4T2YXXMd8TFzAyXwXIDCVkYsEy+vBGe1MoiWR+W8fJQVFWIuL6cJr7xT4TvIPCmIt5bQX1R4GzeF6nVBfaPcSuFGwSXd4lKVbO5YPjMZ8XvZzuBFHIDrY3V4h2fqJdyTtBwPPGWwJmC8Q2Ya"
		for name, keys := range map[string][]string{
			"none": nil, "empty": {"", " \n\n"}, "comment": {"# " + good}, "garbage": {"ssh-ed25519 AAAA", "hello", "\x00\xff"},
			"options": {`command="rm -rf /" ` + good, "no-pty," + `environment="A=B" ` + good}, "old": {dsa},
			"huge": {good + strings.Repeat("x", 16<<10)}, "many": slices.Repeat([]string{good}, 33),
		} {
			_, err := w.Create(t.Context(), identity.User{ID: 1000, Username: "alice", SSHKeys: keys}, withAll)
			require.True(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
			require.ErrorContains(t, err, "ssh: ")
		}
		for _, password := range []string{"a\nroot2:b", "a\rb", "a\x00b", "\x7f", "\xff", strings.Repeat("x", 257)} {
			_, err := w.Create(t.Context(), w.user(1000), webspace.CreateRequest{Image: "hello", Password: password})
			require.True(t, errdefs.IsInvalidArgument(err), "%q", password)
			require.NotContains(t, err.Error(), password)
		}
		require.Zero(t, w.runtime.Calls("Create"))

		plain := newWorld(t, nil) // its runtime does not say that instances are systems of their own
		_, err := plain.Create(t.Context(), identity.User{ID: 1000, Username: "alice", SSHKeys: []string{good}}, withAll)
		require.True(t, errdefs.IsNotImplemented(err))
		_, err = plain.Create(t.Context(), plain.user(1000), webspace.CreateRequest{Image: "hello", Password: "x"})
		require.True(t, errdefs.IsNotImplemented(err))
		require.Zero(t, plain.runtime.Calls("Create"))
	})
}

// Keys are written anew from what they say, so that nothing else comes along.
func TestKeysAreRewritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := newSystem(t, nil)
		one, two := publicKey(t), publicKey(t)
		user := identity.User{ID: 1000, Username: "alice", SSHKeys: []string{
			"# mine\n" + one + "\r\n\n" + two, "no-pty " + publicKey(t), "\t" + one + " \x1b]0;x\x07",
		}}
		_, err := w.Create(t.Context(), user, withAll)
		require.NoError(t, err)
		bare := func(key string) string { return strings.TrimSuffix(key, " alice@laptop") + "\n" }
		require.Equal(t, bare(one)+bare(two)+bare(one), s.inputs["keys"])
	})
}

func TestRequestsHideThePassword(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		require.NotContains(t, fmt.Sprintf(verb, &withAll), canary)
	}
	require.Contains(t, fmt.Sprint(withAll), "password: true")
	_, err := json.Marshal(withAll.LogValue().Any())
	require.NoError(t, err)
}
