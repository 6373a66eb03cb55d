//go:build linux

package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// mark begins the variable by which the processes of an instance are found, wherever they have forked to: what leaves
// the process group takes its environment along.
const mark = "WEBSPACE_DIRECTORY="

// stat is what /proc says about a process.
type stat struct {
	zombie bool
	cpu    time.Duration
	ticks  uint64 // when it started
	memory int64
}

const ticksPerSecond = 100 // USER_HZ, the same on all of Go's Linux platforms

func readStat(pid int) (s stat, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, err
	}
	// The second field is the program's name in parentheses, and may have anything in it. The third is the state.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 22 {
		return s, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	number := func(field int) (n uint64) {
		n, parseErr := strconv.ParseUint(fields[field-3], 10, 64)
		err = errors.Join(err, parseErr)
		return n
	}
	s.zombie = fields[0] == "Z" || fields[0] == "X"
	s.cpu = time.Duration(number(14)+number(15)) * time.Second / ticksPerSecond
	s.ticks = number(22)
	s.memory = int64(number(24)) * int64(os.Getpagesize())
	return s, err
}

// marked says whether a process is one of the instance in dir. Of a zombie there is no saying.
func marked(pid int, dir string) bool {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, environment...), []byte("\x00"+mark+dir+"\x00"))
}

// members returns the IDs of the processes of the instance in dir.
func members(dir string) (pids []int) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && marked(pid, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sweep kills all processes of the instance in dir and waits until none is left. It ends, for even one that forks
// faster than it is killed is not worth waiting for. It returns the IDs of what it has killed.
func sweep(dir string) (killed []int) {
	for range 500 {
		pids := members(dir)
		if len(pids) == 0 {
			return killed
		}
		for _, pid := range pids {
			// The handle stands for the process even if its ID goes to another meanwhile, so it is looked at again.
			if p, err := os.FindProcess(pid); err == nil {
				if marked(pid, dir) {
					_ = p.Signal(unix.SIGKILL)
					killed = append(killed, pid)
				}
				_ = p.Release()
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return killed
}

// sweepOrphans sweeps an instance that no process is known of. There may be children of this program's all the same, from an
// earlier runtime on the same directory.
func sweepOrphans(dir string) {
	for _, pid := range sweep(dir) {
		_, _ = unix.Wait4(pid, nil, 0, nil) // it is killed; an error if it is not a child
	}
}

// State implements [webspace.Runtime]. Instances have no interface but the loopback, which does not count.
func (r *Runtime) State(ctx context.Context, name string) (webspace.State, error) {
	i, err := r.find(ctx, name)
	if err != nil {
		return webspace.State{}, err
	}
	state := webspace.State{Status: i.status()}
	p := i.process
	i.mu.Unlock()
	if p == nil {
		return state, nil
	}
	state.StartedAt = p.StartedAt
	for _, pid := range members(i.dir) {
		if s, err := readStat(pid); err == nil && !s.zombie {
			state.Processes++
			state.CPU += s.cpu
			state.Memory += s.memory
		}
	}
	size, err := diskUsage(ctx, i.dir)
	if err != nil {
		return webspace.State{}, err
	}
	state.Disks = map[string]int64{"root": size}
	return state, nil
}

// diskUsage adds up what the files take. Those that come and go meanwhile do not matter.
func diskUsage(ctx context.Context, dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				size += s.Blocks * 512
			}
		}
		return nil
	})
	return size, err
}
