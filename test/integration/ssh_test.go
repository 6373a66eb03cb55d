package integration_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
)

// Nobody but the account's owner knows these.
const secret = "c4nary: a password"

// TestSSH creates webspaces with an SSH server and logs in.
func TestSSH(t *testing.T) {
	e := testbed.LXD(t)
	t.Run("refused", func(t *testing.T) {
		h := startLibrary(t, e, e.Profile, "ssh1-")
		_, err := h.Create(t.Context(), h.owner(), webspace.CreateRequest{Image: e.Image, SSH: true})
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
		require.ErrorContains(t, err, "has no SSH server")
		_, err = h.Create(t.Context(), h.owner(), webspace.CreateRequest{Image: e.Image, Password: secret})
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
		require.ErrorContains(t, err, "has no chpasswd")
		require.NotContains(t, e.Run(t, "list", "--format=csv"), "ssh1-", "nothing is left")
	})
	t.Run("installed", func(t *testing.T) {
		image := testbed.Dropbear(t)
		// What is installed was hidden until then. The installer needs the network.
		image.Boot = "[ -e /etc/installed ] || mv /usr/sbin/dropbear /usr/lib/hidden"
		image.Files["bin/apk"] = "#!/bin/sh\necho \"apk $*\"\nip route | grep default || exit 1\n" +
			"touch /etc/installed\nmv /usr/lib/hidden /usr/sbin/dropbear\n"
		e.ImportImage(t, "installer", image)
		e.Run(t, "image", "set-property", "installer", "os", "Alpine")
		h := startLibrary(t, e, e.Profile, "ssh3-")
		h.login(t, webspace.CreateRequest{Image: "installer", SSH: true})
	})
	t.Run("not installed", func(t *testing.T) {
		image := testbed.Hello()
		image.Files = map[string]string{"bin/apk": "#!/bin/sh\necho 'ERROR: unable to select packages'\nexit 1\n"}
		e.ImportImage(t, "broken-installer", image)
		e.Run(t, "image", "set-property", "broken-installer", "os", "alpine")
		h := startLibrary(t, e, e.Profile, "ssh4-")
		_, err := h.Create(t.Context(), h.owner(), webspace.CreateRequest{Image: "broken-installer", SSH: true})
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "ERROR: unable to select packages")
		require.NotContains(t, e.Run(t, "list", "--format=csv"), "ssh4-", "nothing is left")
	})
	t.Run("debian", func(t *testing.T) {
		image, profile := e.Debian(t)
		h := startLibrary(t, e, profile, "ssh2-")
		h.login(t, webspace.CreateRequest{Image: image, SSH: true, Password: secret})

		require.NoError(t, h.dial(t, ssh.PublicKeys(h.key)), "it has booted")
		r, err := h.Shell(t.Context(), 1000, "echo PermitRootLogin yes >/etc/ssh/sshd_config.d/test.conf && systemctl restart ssh")
		require.NoError(t, err)
		require.Zero(t, r.ExitCode, "%s", r.Stderr)
		require.NoError(t, h.dial(t, ssh.Password(secret)))
		require.ErrorContains(t, h.dial(t, ssh.Password("another")), "unable to authenticate")
	})
}

// library is a Manager on an engine, with one user.
type library struct {
	*webspace.Manager
	engine *testbed.Engine
	key    ssh.Signer
	port   int // that is forwarded to the SSH server
	logs   *buffer
	events *buffer
	stop   func()
}

func startLibrary(t *testing.T, e *testbed.Engine, profile, prefix string) *library {
	h := &library{engine: e, key: newKey(t), logs: new(buffer), events: new(buffer)}
	log := slog.New(slog.NewJSONHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	runtime, err := lxd.Connect(t.Context(), &lxd.Options{Socket: e.Socket, Profile: profile, Logger: log})
	require.NoError(t, err)
	users, err := static.New([]static.Account{{User: h.owner(), Token: "alice"}})
	require.NoError(t, err)
	var forwarder *proxy.Forwarder
	h.Manager, err = webspace.NewManager(runtime, users, "ws.example.test", &webspace.Options{
		Prefix: prefix, Logger: log,
		Forwarder: func(m proxy.Activator) webspace.PortForwarder {
			forwarder = proxy.NewForwarder(m, &proxy.ForwarderOptions{ListenAddress: netip.MustParseAddr("127.0.0.1"), Logger: log})
			return forwarder
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { e.Delete(t, prefix+"u1000") })

	monitor := e.Command("monitor", "--format=json")
	monitor.Stdout = h.events
	require.NoError(t, monitor.Start())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.Run(ctx) })
	h.stop = sync.OnceFunc(func() {
		ending, end := context.WithTimeout(context.Background(), 10*time.Second)
		defer end()
		require.NoError(t, forwarder.Shutdown(ending))
		cancel()
		_ = h.Close()
		wg.Wait()
		_ = monitor.Process.Kill()
		_ = monitor.Wait()
	})
	t.Cleanup(h.stop)
	return h
}

func (h *library) owner() identity.User {
	return identity.User{ID: 1000, Username: "alice", SSHKeys: []string{string(ssh.MarshalAuthorizedKey(h.key.PublicKey()))}}
}

// login creates a webspace and logs in with the account's key: the first login boots it. It is left running.
func (h *library) login(t *testing.T, req webspace.CreateRequest) {
	started := time.Now()
	w, err := h.Create(t.Context(), h.owner(), req)
	require.NoError(t, err)
	t.Logf("created after %v", time.Since(started).Round(time.Millisecond))
	require.Len(t, w.Ports, 1)
	for external, internal := range w.Ports {
		require.Equal(t, 22, internal)
		h.port = external
	}
	summary, ok := h.Summary(1000)
	require.True(t, ok)
	require.Equal(t, webspace.StatusStopped, summary.Status)
	for _, end := range []func(context.Context, identity.UserID) error{h.Stop, h.Restart} {
		require.NoError(t, h.dial(t, ssh.PublicKeys(h.key)))
		require.ErrorContains(t, h.dial(t, ssh.PublicKeys(newKey(t))), "unable to authenticate")
		require.ErrorContains(t, h.dial(t, ssh.Password("")), "unable to authenticate")
		require.NoError(t, end(t.Context(), 1000))
	}

	// The command lines of the set-up were told to all who follow the engine's events; what is secret was not in them.
	require.Eventually(t, func() bool { return strings.Contains(h.events.String(), "authorized_keys") }, 10*time.Second, 50*time.Millisecond)
	key := strings.Fields(h.owner().SSHKeys[0])[1]
	for what, text := range map[string]string{
		"events": h.events.String(), "log": h.logs.String(), "configuration": h.engine.Run(t, "config", "show", "--expanded", summary.Instance),
	} {
		require.NotContains(t, text, secret, what)
		require.NotContains(t, text, key, what)
	}
}

// dial logs in through the forwarded port, and runs a command as root.
func (h *library) dial(t *testing.T, auth ssh.AuthMethod) error {
	client, err := ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 30 * time.Second,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := client.NewSession()
	require.NoError(t, err)
	defer session.Close()
	out, err := session.Output("id -u")
	require.NoError(t, err)
	require.Equal(t, "0\n", string(out))
	return nil
}

func newKey(t *testing.T) ssh.Signer {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer
}
