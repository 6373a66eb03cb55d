package testbed

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type kind string

const (
	lxd   kind = "lxd"
	incus kind = "incus"
)

// Engine is a running LXD or Incus.
type Engine struct {
	// Name is "lxd" or "incus".
	Name string
	// Socket is the unix socket of its API.
	Socket string
	// URL is its API over HTTPS, on the loopback; ServerCert, ClientCert and ClientKey are PEM files for it.
	URL                               string
	ServerCert, ClientCert, ClientKey string
	// Network is the managed bridge, Gateway this host's address on it, Subnet its addresses.
	Network string
	Gateway netip.Addr
	Subnet  netip.Prefix
	// Profile has a root disk, and eth0 on Network.
	Profile string
	// Filtered is Profile with IPv4 and MAC filtering; empty if the host's kernel or tools can not do it. Engines name
	// packet filter chains by the instance alone, host-wide, so names of instances that use it begin with Prefix.
	Filtered string
	// Prefix begins names of instances that no other engine on this host uses.
	Prefix string
	// Image is the alias of [Hello].
	Image string
	// Pool is the storage pool.
	Pool string

	kind kind
	cell *cell
	env  []string // of the daemon and of the client

	mu     sync.Mutex
	images map[string]bool // aliases
}

// LXD returns the LXD of this test binary. A test that kills or pauses it does not run in parallel with others, and
// leaves it running.
func LXD(t testing.TB) *Engine {
	t.Helper()
	need(t, "lxd", "lxc", "dnsmasq", "busybox", "ip", "unshare", "bash")
	return shared(t, lxd)
}

// Incus returns the Incus of this test binary. As for [LXD].
func Incus(t testing.TB) *Engine {
	t.Helper()
	need(t, "lxc", "busybox", "ip", "unshare", "bash", "pivot_root")
	if _, err := os.Stat(incusRoot); err != nil {
		missing(t, "needs Incus in a root file system of its own: test/incus/build makes it")
	}
	return shared(t, incus)
}

func shared(t testing.TB, k kind) *Engine {
	t.Helper()
	started.Lock()
	defer started.Unlock()
	if !started.main {
		t.Fatal("the package's TestMain does not call testbed.Main")
	}
	if started.engines == nil {
		started.engines = map[kind]*Engine{}
	}
	e, tried := started.engines[k]
	if !tried {
		c, err := takeCell()
		if err != nil {
			t.Fatal(err)
		}
		started.stops = append(started.stops, c.close)
		e = newEngine(k, c)
		if err := e.open(); err != nil {
			t.Logf("%s said:\n%s", k, c.tail())
			t.Log(err)
			e = nil
		}
		started.engines[k] = e
	}
	if e == nil {
		// As root in a container, say, which may not make namespaces.
		missing(t, "%s does not start here", k)
	}
	return e
}

func newEngine(k kind, c *cell) *Engine {
	dir := filepath.Join(c.directory, string(k))
	e := &Engine{
		Name:    string(k),
		Socket:  filepath.Join(dir, "unix.socket"),
		Network: c.bridge,
		Gateway: c.subnet.Addr().Next(),
		Subnet:  c.subnet,
		Profile: "default",
		Image:   "hello",
		Pool:    "default",
		Prefix:  fmt.Sprintf("ws%d-", c.number),

		ServerCert: filepath.Join(dir, "server.crt"),
		ClientCert: filepath.Join(c.directory, "client.crt"),
		ClientKey:  filepath.Join(c.directory, "client.key"),

		kind:   k,
		cell:   c,
		images: map[string]bool{},
	}
	// Incus' API is LXD's, and its own client is not on this host.
	e.env = []string{"LXD_DIR=" + dir, "LXD_CONF=" + filepath.Join(c.directory, "conf"), "INCUS_DIR=" + dir}
	return e
}

func (e *Engine) open() error {
	if err := os.MkdirAll(filepath.Dir(e.Socket), 0o711); err != nil {
		return err
	}
	wrap, daemon := "", []string{"lxd", "--group", "root"}
	if e.kind == incus {
		wrap, daemon = incusWrap, []string{"incusd", "--group", "root"}
	}
	if err := e.cell.open(wrap, e.env, daemon...); err != nil {
		return err
	}
	if err := e.start(); err != nil {
		return err
	}
	return e.configure()
}

const incusRoot = "/var/cache/webspaced-test/incus-6.0"

// incusWrap moves PID 1 into a root with Incus in it; with chroot the kernel would refuse containers a user namespace.
// Several engines use the same files at once: what Incus writes besides INCUS_DIR goes into memory.
const incusWrap = `
set -e
root=` + incusRoot + `
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount --rbind /proc "$root/proc"
mount --bind ` + cells + ` "$root` + cells + `"
for dir in run tmp var/tmp var/log var/cache var/lib/incus var/lib/misc; do mount -t tmpfs tmpfs "$root/$dir"; done
mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
cd /
export PATH=/usr/libexec/incus:/usr/sbin:/usr/bin:/sbin:/bin
umount -l /run/old
set +e
`

// start starts the daemon and returns when it is ready.
func (e *Engine) start() error {
	if err := e.cell.say("start"); err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.Socket)
		},
	}}
	var last error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		response, err := client.Get("http://engine/internal/ready")
		if err != nil {
			last = err
			continue
		}
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
		last = fmt.Errorf("not ready: %s", response.Status)
	}
	return last
}

func (e *Engine) configure() error {
	addresses, err := freeAddresses(1)
	if err != nil {
		return err
	}
	https := addresses[0]
	e.URL = "https://" + https
	if err := writeClientCert(e.ClientCert, e.ClientKey); err != nil {
		return err
	}
	commands := [][]string{
		{"config", "set", "core.https_address", https},
		{"config", "trust", "add", e.ClientCert},
		{"storage", "create", e.Pool, "dir"},
		{"network", "create", e.Network, fmt.Sprintf("ipv4.address=%s/%d", e.Gateway, e.Subnet.Bits()), "ipv4.nat=false",
			"ipv6.address=none", "ipv4.firewall=false", "ipv6.firewall=false", "dns.mode=none", "ipv4.dhcp.expiry=10m"},
		// busybox's init powers off on SIGUSR2, not on the SIGPWR that engines send by default.
		{"profile", "set", e.Profile, "raw.lxc=lxc.signal.halt=SIGUSR2"},
		{"profile", "device", "add", e.Profile, "root", "disk", "path=/", "pool=" + e.Pool},
		{"profile", "device", "add", e.Profile, "eth0", "nic", "network=" + e.Network, "name=eth0"},
	}
	if canFilter() {
		e.Filtered = "filtered"
		commands = append(commands,
			[]string{"profile", "copy", e.Profile, e.Filtered},
			[]string{"profile", "device", "set", e.Filtered, "eth0", "security.mac_filtering=true", "security.ipv4_filtering=true"})
	}
	for _, args := range commands {
		if err := e.run(args...); err != nil {
			return err
		}
	}
	return e.importImage(e.Image, Hello())
}

// canFilter reports whether nftables can filter on bridges here.
func canFilter() bool {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
		add table bridge webspaced-test-%[1]d
		add chain bridge webspaced-test-%[1]d probe { type filter hook forward priority 0; }
		add rule bridge webspaced-test-%[1]d probe ether type arp arp saddr ip 198.18.0.1 drop
		delete table bridge webspaced-test-%[1]d`, os.Getpid()))
	return cmd.Run() == nil
}

// Kill kills the daemon, as a crash would. Instances go on running.
func (e *Engine) Kill(t testing.TB) {
	t.Helper()
	e.say(t, "KILL")
}

// Restart starts the daemon again after Kill, or kills it first, and returns when it is ready.
func (e *Engine) Restart(t testing.TB) {
	t.Helper()
	e.say(t, "KILL")
	if err := e.start(); err != nil {
		t.Fatalf("%s does not start again: %v\n%s", e.Name, err, e.cell.tail())
	}
}

// Pause makes the daemon hang until Resume: it takes connections and never answers.
func (e *Engine) Pause(t testing.TB) {
	t.Helper()
	e.say(t, "STOP")
}

// Resume ends Pause.
func (e *Engine) Resume(t testing.TB) {
	t.Helper()
	e.say(t, "CONT")
}

func (e *Engine) say(t testing.TB, word string) {
	t.Helper()
	if err := e.cell.say(word); err != nil {
		t.Fatal(err)
	}
}

// Command is lxc, talking to this engine.
func (e *Engine) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("lxc", args...)
	cmd.Env = append(os.Environ(), e.env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs the command line client and returns what it prints. A failure fails the test.
func (e *Engine) Run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := e.output(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Address waits for the IPv4 address of an instance on its eth0.
func (e *Engine) Address(t testing.TB, name string) netip.Addr {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		column, _, _ := strings.Cut(e.Run(t, "list", "^"+name+"$", "--format=csv", "--columns=4"), " ")
		if address, err := netip.ParseAddr(column); err == nil {
			return address
		}
	}
	t.Fatalf("%s gets no address", name)
	return netip.Addr{}
}

// Delete deletes instances, running or not, that may not exist.
func (e *Engine) Delete(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		err := e.run("delete", "--force", name)
		for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); {
			if strings.Contains(err.Error(), "not found") {
				err = nil
				break
			}
			// Most likely busy with another operation, such as the end of a guest that powered itself off.
			time.Sleep(50 * time.Millisecond)
			err = e.run("delete", "--force", name)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func (e *Engine) run(args ...string) error {
	_, err := e.output(args...)
	return err
}

func (e *Engine) output(args ...string) (string, error) {
	return e.outputWithin(2*time.Minute, args...)
}

func (e *Engine) outputWithin(limit time.Duration, args ...string) (string, error) {
	cmd := e.Command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer time.AfterFunc(limit, func() { cmd.Process.Kill() }).Stop()
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("lxc %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
