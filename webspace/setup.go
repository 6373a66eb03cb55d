package webspace

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/ssh"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/proxy"
)

// sshPort is where an SSH server listens in an instance.
const sshPort = 22

// sshScript is run by /bin/sh in the instance. Its command line, with all of the script, can be seen by others.
//
//go:embed setup.sh
var sshScript string

const noSSHServer = 64 // its exit code

// sshPackages returns how an SSH server is installed, by the property "os" of the image.
func sshPackages() map[string]string {
	const (
		apt = "export DEBIAN_FRONTEND=noninteractive; apt-get -o DPkg::Lock::Timeout=60 update;" +
			" apt-get -o DPkg::Lock::Timeout=60 install -y --no-install-recommends openssh-server"
		dnf = "if command -v dnf; then dnf -y install openssh-server; else yum -y install openssh-server; fi"
	)
	return map[string]string{
		"alpine":    "apk add --no-cache openssh",
		"archlinux": "pacman -Sy --noconfirm --needed openssh",
		"centos":    dnf,
		"debian":    apt,
		"fedora":    dnf,
		"ubuntu":    apt,
	}
}

// keysScript reads authorized_keys from its input. Keys that came with the image are replaced.
const keysScript = `set -eu
umask 077
cd ~root
mkdir -p .ssh
rm -f .ssh/authorized_keys
cat >.ssh/authorized_keys
chmod 700 .ssh`

// setup is what a creation does in the new instance. What is secret reaches it over the input of commands alone: engines
// tell everybody who follows their events what the command line is, and the guest can read its configuration.
type setup struct {
	password string
	ssh      bool
	keys     string // authorized_keys
	os       string // the image's property
	image    string
}

func (s setup) empty() bool { return s.password == "" && !s.ssh }

// newSetup checks what a request asks for beyond an instance, before anything is made.
func (m *Manager) newSetup(ctx context.Context, user identity.User, req CreateRequest) (setup, error) {
	s := setup{password: req.Password, ssh: req.SSH, image: req.Image}
	if s.empty() {
		return s, nil
	}
	var err error
	if s.ssh {
		if s.keys, err = authorizedKeys(user.SSHKeys); err != nil {
			return s, err
		}
	}
	_, execer := m.runtime.(Execer)
	_, isolated := m.runtime.(Isolated)
	if !execer || !isolated {
		return s, fmt.Errorf("this server's runtime has no passwords and installs nothing: %w", errdefs.ErrNotImplemented)
	}
	if !s.ssh {
		return s, nil
	}
	images, err := m.Images(ctx)
	if err != nil {
		return s, fmt.Errorf("images: %w", err)
	}
	for _, image := range images {
		if image.Fingerprint == req.Image || slices.ContainsFunc(image.Aliases, func(a ImageAlias) bool { return a.Name == req.Image }) {
			s.os = asciiLower(image.Properties["os"])
		}
	}
	return s, nil
}

// authorizedKeys returns the keys of an account as the lines of a file. Options are a reason to leave a key out: with
// them, and as well without them, it would be good for something else than its owner thinks.
func authorizedKeys(keys []string) (string, error) {
	const maxKeys, maxKey = 32, 16 << 10
	var lines strings.Builder
	refused := errors.New("it has none")
	count := 0
	for _, key := range keys {
		for line := range strings.SplitSeq(key, "\n") {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if count++; count > maxKeys {
				return "", invalid("ssh: the account has more than %d SSH keys", maxKeys)
			}
			if len(line) > maxKey {
				refused = fmt.Errorf("one has more than %d bytes", maxKey)
				continue
			}
			public, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
			_, certificate := public.(*ssh.Certificate)
			switch {
			case err != nil:
				refused = errors.New("one is not in the format of authorized_keys")
			case len(options) > 0:
				refused = errors.New("one has options")
			case certificate || public.Type() == "ssh-dss": // which servers no longer take
				refused = fmt.Errorf("one is of type %s", public.Type())
			default:
				lines.Write(ssh.MarshalAuthorizedKey(public))
			}
		}
	}
	if lines.Len() == 0 {
		return "", invalid("ssh: the account needs an SSH key that can be used: %v", refused)
	}
	return lines.String(), nil
}

// setUp does all that a creation does inside: the instance is started for it, and stopped at the end.
func (m *Manager) setUp(ctx context.Context, name string, s setup) error {
	// A creation that can not begin soon is better refused than answered after whoever asked has given up.
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	select {
	case m.setups <- struct{}{}:
		defer func() { <-m.setups }()
	case <-patience.C:
		return fmt.Errorf("too many webspaces are being set up at the moment: %w", errdefs.ErrResourceExhausted)
	case <-ctx.Done():
		return ctx.Err()
	}
	limited, cancel := context.WithTimeout(ctx, m.opts.SetupTimeout)
	defer cancel()
	err := m.runSetup(limited, name, s)
	if f, ok := errors.AsType[*proxy.Failure](err); ok {
		err = unfit("%s", f.Reason)
	}
	if errors.Is(err, errGone) {
		err = unfit("%v", err)
	}
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = unfit("it took longer than %v: %v", m.opts.SetupTimeout, err)
	}
	return err
}

func (m *Manager) runSetup(ctx context.Context, name string, s setup) error {
	if err := m.bootForSetup(ctx, name); err != nil {
		return err
	}
	if s.ssh {
		code, output, err := m.runInside(ctx, name, "", "/bin/sh", "-c", sshScript, "setup", sshPackages()[s.os])
		switch {
		case err == nil && code == noSSHServer:
			return invalid("ssh: image %s has no SSH server, and its property os is %q: one can be installed where that is %s",
				s.image, s.os, strings.Join(slices.Sorted(maps.Keys(sshPackages())), ", "))
		case err != nil:
			return fmt.Errorf("install an SSH server: %w%s", err, output)
		case code != 0:
			return unfit("installing an SSH server ended with exit code %d%s", code, output)
		}
		code, output, err = m.runInside(ctx, name, s.keys, "/bin/sh", "-c", keysScript)
		if err != nil {
			return fmt.Errorf("store SSH keys: %w", err)
		}
		if code != 0 {
			return unfit("storing the account's SSH keys ended with exit code %d%s", code, output)
		}
	}
	if s.password != "" {
		// What it prints is not told: a program of an image can print the password.
		code, _, err := m.runInside(ctx, name, "root:"+s.password+"\n", "chpasswd")
		switch {
		case err != nil:
			return fmt.Errorf("set the password: %w", err)
		case code == 127:
			return invalid("password: image %s has no chpasswd", s.image)
		case code != 0:
			return unfit("chpasswd ended with exit code %d", code)
		}
	}
	if s.ssh {
		if err := m.checkSSH(ctx, name); err != nil {
			return err
		}
	}
	return m.runtime.Stop(ctx, name, m.opts.StopGrace)
}

func (m *Manager) bootForSetup(ctx context.Context, name string) error {
	release, err := m.bootSlot(ctx, name, nil)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, m.opts.StartTimeout)
	defer cancel()
	if err := m.runtime.Start(ctx, name); err != nil {
		return fmt.Errorf("start it: %w", err)
	}
	return nil
}

// checkSSH boots the instance once more, and sees whether the SSH server comes up as it will have to.
func (m *Manager) checkSSH(ctx context.Context, name string) error {
	if err := m.runtime.Restart(ctx, name, m.opts.StopGrace); err != nil {
		return fmt.Errorf("restart it: %w", err)
	}
	e := m.known(ctx, name)
	if e == nil {
		return fmt.Errorf("look at it: %w", errdefs.ErrUnavailable)
	}
	address, err := m.awaitAddress(ctx, e)
	if err != nil {
		return err
	}
	probing, cancel := context.WithTimeout(ctx, m.opts.MaxStartupDelay)
	defer cancel()
	for {
		if m.opts.Probe(probing, netip.AddrPortFrom(address, sshPort)) == nil {
			return nil
		}
		if sleep(probing, 100*time.Millisecond) != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return unfit("an SSH server is installed, but nothing answers on port %d", sshPort)
		}
	}
}

// runInside runs a command in the instance and returns its exit code and the end of what it printed.
func (m *Manager) runInside(ctx context.Context, name, input string, command ...string) (code int, output string, err error) {
	var out tail
	code, err = m.runtime.(Execer).Exec(ctx, name, ExecOptions{
		Command: command, Stdin: strings.NewReader(input), Stdout: &out, Stderr: &out,
	})
	if output = out.String(); output != "" {
		output = ":\n" + output
	}
	return code, output, err
}

// unfit says that an image could not be made a webspace of, which is neither the request's nor the server's fault.
func unfit(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

// tail keeps the last 2 KiB of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 2 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p[max(0, len(p)-limit):]...)
	t.kept = slices.Clone(t.kept[max(0, len(t.kept)-limit):])
	return len(p), nil
}

// String is what was kept, as far as it can be shown.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(t.kept), "")))
}

// Format implements [fmt.Formatter]: the password is left out, however a request is printed.
func (r CreateRequest) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.redacted()) }

// LogValue implements [slog.LogValuer], likewise.
func (r CreateRequest) LogValue() slog.Value { return slog.StringValue(r.redacted()) }

func (r CreateRequest) redacted() string {
	return fmt.Sprintf("{image: %q, password: %t, ssh: %t}", r.Image, r.Password != "", r.SSH)
}

func validatePassword(password string) error {
	if len(password) > 256 {
		return invalid("password: it has more than 256 bytes")
	}
	for _, c := range password {
		if c < ' ' || c == 0x7f || c == unicode.ReplacementChar {
			return invalid("password: control characters and bytes that are not UTF-8 are not allowed")
		}
	}
	return nil
}
