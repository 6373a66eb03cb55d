//go:build linux

package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// An instance is a folder named after it, with these in it. The folder appears and disappears in one step.
const (
	metaFile    = "instance.json"
	processFile = "process.json" // while it runs
	consoleFile = "console.log"
	homeFolder  = "home"

	// What these begin is not an instance yet, or no more: no instance's name begins with a dot.
	newPrefix   = ".new-"
	trashPrefix = ".trash-"
)

type instance struct {
	name, dir string

	mu      sync.Mutex
	meta    meta
	broken  error    // why there is no meta
	process *process // nil: stopped
	deleted bool
}

// meta is the content of instance.json.
type meta struct {
	Name     string
	Image    string
	Address  netip.Addr
	Record   []byte // in base64, for it is to survive byte for byte
	Revision int64
}

func (i *instance) read() webspace.Instance {
	if i.broken != nil {
		return webspace.Instance{Name: i.name, Status: webspace.StatusError, Revision: "unreadable"}
	}
	return webspace.Instance{
		Name:     i.name,
		Status:   i.status(),
		Address:  i.meta.Address,
		Record:   slices.Clone(i.meta.Record),
		Revision: strconv.FormatInt(i.meta.Revision, 10),
	}
}

func (i *instance) status() webspace.Status {
	switch {
	case i.broken != nil:
		return webspace.StatusError
	case i.process == nil:
		return webspace.StatusStopped
	case i.process.stopping > 0:
		return webspace.StatusStopping
	}
	return webspace.StatusRunning
}

func (i *instance) home() string { return filepath.Join(i.dir, homeFolder) }

// release stops watching the process, which goes on.
func (i *instance) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process != nil {
		_ = i.process.fd.Close()
	}
}

// install makes the folder of a new instance.
func (r *Runtime) install(i *instance, files map[string]string) (err error) {
	temporary, err := os.MkdirTemp(r.dir, newPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	home := filepath.Join(temporary, homeFolder)
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	for path, content := range files {
		if !filepath.IsLocal(path) {
			return fmt.Errorf("file %q of the image is outside of the instance: %w", path, errdefs.ErrInvalidArgument)
		}
		path = filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := i.meta.write(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, i.dir); err != nil {
		return err
	}
	return syncDirectory(r.dir)
}

// write replaces instance.json, so that after a power cut it is the old one or the new one.
func (m meta) write(dir string) error {
	content, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, metaFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDirectory(dir)
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readMeta(dir, name string) (m meta, err error) {
	content, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, fmt.Errorf("%s: %w", metaFile, err)
	}
	if m.Name != name {
		return m, fmt.Errorf("%s is that of %q", metaFile, m.Name)
	}
	if !m.Address.IsLoopback() {
		return m, fmt.Errorf("%s has the address %s, not one of the loopback", metaFile, m.Address)
	}
	return m, nil
}

// load takes over what is in the directory.
func (r *Runtime) load() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		dir := filepath.Join(r.dir, name)
		switch {
		case strings.HasPrefix(name, newPrefix), strings.HasPrefix(name, trashPrefix):
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		case entry.IsDir() && label.MatchString(name):
			i := &instance{name: name, dir: dir}
			r.instances[name] = i
			if i.meta, i.broken = readMeta(dir, name); i.broken == nil && r.addresses[i.meta.Address] {
				i.broken = fmt.Errorf("its address %s is that of another instance", i.meta.Address)
			}
			if i.broken != nil {
				i.meta = meta{}
				continue
			}
			r.addresses[i.meta.Address] = true
			i.mu.Lock()
			r.adopt(i)
			i.mu.Unlock()
		}
	}
	return nil
}

// allocate finds an address for an instance: the one its name and the directory lead to, or the next that is free.
func (r *Runtime) allocate(name string) (netip.Addr, error) {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(r.dir + "\x00" + name))
	prefix := r.opts.Addresses.Masked()
	base := prefix.Addr().As4()
	size := uint32(1) << (32 - prefix.Bits())
	start := hash.Sum32()
	for n := range size {
		host := (start + n) % size
		address := netip.AddrFrom4([4]byte{
			base[0], base[1] | byte(host>>16), base[2] | byte(host>>8), base[3] | byte(host),
		})
		// Nobody expects the first and the last of a network to be somebody.
		if last := address.As4()[3]; last != 0 && last != 255 && !r.addresses[address] {
			r.addresses[address] = true
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address is left in %s: %w", prefix, errdefs.ErrResourceExhausted)
}

// ignoreNotExist is for what is to be gone.
func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
