package testbed

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// cell is a PID and mount namespace in which an engine lives with all that it starts, and the place on this host that
// goes with it: a number, a directory, a bridge and its subnet.
//
// PID 1 of the namespace reads from a pipe that this process holds. When this process ends, even by SIGKILL, PID 1
// ends too, and then the kernel kills whatever is left in the namespace and drops its mounts. What can stay behind
// (the directory, the bridge, empty control groups, packet filter chains) is removed by whoever takes the number next.
type cell struct {
	number    int
	directory string
	bridge    string
	subnet    netip.Prefix

	lock net.Listener
	cmd  *exec.Cmd

	mu      sync.Mutex // one word at a time
	words   io.WriteCloser
	answers *bufio.Scanner
}

const (
	// Not below /tmp or /run, which may be mounted noexec, and short because the path of a unix socket is.
	cells     = "/var/lib/webspaced-test"
	cellCount = 60
)

// takeCell takes the first free number, and cleans up what earlier processes left of it and of all other free ones.
func takeCell() (*cell, error) {
	var taken *cell
	for n := 1; n <= cellCount; n++ {
		// An abstract socket is a lock that the kernel releases with the process.
		lock, err := net.Listen("unix", fmt.Sprintf("@webspaced-test-%d", n))
		if err != nil {
			continue
		}
		c := &cell{
			number:    n,
			directory: fmt.Sprintf("%s/%d", cells, n),
			bridge:    fmt.Sprintf("wstest%d", n),
			subnet:    netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(4 * n), 0}), 22),
			lock:      lock,
		}
		if _, err := os.Stat(c.directory); err == nil {
			c.clean()
		}
		if taken == nil && !addressInUse(c.subnet) {
			taken = c
			continue
		}
		lock.Close()
	}
	if taken == nil {
		return nil, errors.New("every test bed of this host is in use")
	}
	// Containers run as other users and look their files up through these directories.
	return taken, os.MkdirAll(taken.directory, 0o711)
}

func addressInUse(p netip.Prefix) bool {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range addresses {
		if other, err := netip.ParsePrefix(a.String()); err == nil && other.Overlaps(p) {
			return true
		}
	}
	return false
}

// init is PID 1 of a cell. It takes words on its standard input and answers each with a line: "start" runs the daemon,
// any other is a signal to send to it. Bash reaps what the engine orphans. enter is a command that comes first.
const cellInit = `
while read -r word; do
	case $word in
	start) "$@" </dev/null >>"$CELL_LOG" 2>&1 & daemon=$! ;;
	*) kill -s "$word" "$daemon"; if [ "$word" = KILL ]; then wait "$daemon"; fi ;;
	esac 2>>"$CELL_LOG"
	echo done
done`

// open starts the namespace, with a daemon that is not started yet. wrap is a script that PID 1 runs before anything else.
func (c *cell) open(wrap string, env []string, daemon ...string) error {
	args := append([]string{"--fork", "--pid", "--mount", "--mount-proc", "--", "bash", "-c", wrap + cellInit, "cell"}, daemon...)
	c.cmd = exec.Command("unshare", args...)
	c.cmd.Env = append(append(os.Environ(), "CELL_LOG="+c.log()), env...)
	c.cmd.Dir = "/"
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = ownGroup()
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	c.words, c.answers = in, bufio.NewScanner(out)
	return c.cmd.Start()
}

func (c *cell) log() string { return filepath.Join(c.directory, "log") }

// say hands PID 1 a word and waits until it is done.
func (c *cell) say(word string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := io.WriteString(c.words, word+"\n"); err != nil {
		return err
	}
	if !c.answers.Scan() {
		return fmt.Errorf("the engine's namespace is gone (%w)", errors.Join(c.answers.Err(), io.ErrUnexpectedEOF))
	}
	return nil
}

// close kills all that lives in the cell and gives its number back.
func (c *cell) close() {
	if c.cmd != nil && c.cmd.Process != nil {
		c.words.Close()
		c.cmd.Wait()
	}
	c.clean()
	c.lock.Close()
}

// clean removes what outlives the processes of a cell. The caller holds its lock and knows that none is left.
func (c *cell) clean() {
	for _, name := range c.instances() {
		for _, chain := range []string{"in", "fwd"} {
			for _, table := range []string{"lxd", "incus"} {
				exec.Command("nft", "delete", "chain", "bridge", table, chain+"."+name+".eth0").Run()
			}
		}
		// Only empty groups can be removed, so a container of the same name in another engine is safe.
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			for _, role := range []string{"payload", "monitor"} {
				groups, _ := filepath.Glob(fmt.Sprintf("%s/lxc.%s.%s*", pattern, role, name))
				for _, group := range groups {
					removeGroup(group)
				}
			}
		}
	}
	exec.Command("ip", "link", "delete", c.bridge).Run()
	os.RemoveAll(c.directory)
}

// instances are the names of the containers that the engine had when it ended.
func (c *cell) instances() []string {
	paths, _ := filepath.Glob(filepath.Join(c.directory, "*", "containers", "*"))
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p)
	}
	return names
}

func removeGroup(path string) {
	var groups []string
	filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, p)
		}
		return nil
	})
	for i := len(groups) - 1; i >= 0; i-- {
		os.Remove(groups[i])
	}
}

// tail is the end of the daemon's log.
func (c *cell) tail() string {
	log, _ := os.ReadFile(c.log())
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
