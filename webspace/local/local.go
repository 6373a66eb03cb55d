//go:build linux

// Package local runs webspaces as plain processes of this host: for trying, developing and testing webspaced without a
// container engine.
//
// There is no isolation. An instance is a process group that runs as the user of the program that started it, sees all
// that this user sees, and can do all that this user may do. Its address is one of the loopback (127.x.y.z): every user of
// this host reaches it, and nobody else. Do not give such webspaces to people whom you would not give a shell.
//
// The instances outlive the program: the next one that opens the directory finds them running. They end when they are
// stopped, or with the host.
//
// The built-in image "hello", a small site, is the program itself, started again. A program that uses it calls [Main]
// first thing in main, and in TestMain:
//
//	func main() {
//		local.Main()
//		runtime, err := local.New("/var/lib/example", nil)
//		...
//	}
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/netsoc/webspaced/webspace"
)

// Options are what a [Runtime] can be told. The zero value of each is a sane default.
type Options struct {
	// Images are what instances can be created from, besides "hello" (unless it is among them), by their names.
	Images map[string]Image
	// Addresses is where the instances get theirs from: a part of 127.0.0.0/8. Default: 127.128.0.0/10. Runtimes of
	// different directories prefer different addresses, but only within one directory they are surely distinct.
	Addresses netip.Prefix
	// Ports are what "hello" listens on. It goes without those it may not have, as long as one is left. Default: 80
	// and 8080.
	Ports []uint16
	// LogSize is how many bytes of the console log are kept, about. Default: 1 MiB.
	LogSize int64
}

// Image is what instances are created from.
type Image struct {
	Description string
	// Command is the program that is the instance, and its arguments. It is looked for in the PATH of an instance. It
	// stays in the foreground, listens on the address in its variable ADDRESS alone, prints its log, and ends on SIGTERM.
	Command []string
	// Files are put into the home directory of a new instance: content by path.
	Files map[string]string
	// Env is added to the environment of an instance, which is ADDRESS, HOME, NAME and PATH: nothing of the program's own.
	Env map[string]string
}

// Runtime is a [webspace.Runtime] on processes of this host, with all the optional interfaces.
type Runtime struct {
	dir    string // absolute, without symbolic links
	opts   Options
	lock   *os.File
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu        sync.Mutex
	instances map[string]*instance
	addresses map[netip.Addr]bool
	watches   map[*watch]bool
}

var _ interface {
	webspace.Runtime
	webspace.Watcher
	webspace.Imager
	webspace.Execer
	webspace.Logger
} = (*Runtime)(nil)

// New opens a directory, makes it if need be, and takes over the instances in it, running ones included. Close the
// runtime after use. FailedPrecondition if another process has the directory open.
func New(dir string, opts *Options) (*Runtime, error) {
	if os.Args[0] == helloProgram {
		return nil, fmt.Errorf("main has to call local.Main first, for image %q: %w", hello, errdefs.ErrFailedPrecondition)
	}
	r := &Runtime{
		instances: map[string]*instance{},
		addresses: map[netip.Addr]bool{},
		watches:   map[*watch]bool{},
	}
	if opts != nil {
		r.opts = *opts
	}
	if err := r.opts.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the instances: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		r.dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		r.lock, err = lockDirectory(r.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("directory of the instances: %w", err)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.load(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("directory of the instances: %w", err)
	}
	r.group.Go(r.trimLogs)
	return r, nil
}

func (o *Options) complete() error {
	o.Images = maps.Clone(o.Images)
	if o.Images == nil {
		o.Images = map[string]Image{}
	}
	if len(o.Ports) == 0 {
		o.Ports = []uint16{80, 8080}
	}
	if _, ok := o.Images[hello]; !ok {
		o.Images[hello] = helloImage(o.Ports)
	}
	for name, image := range o.Images {
		if len(image.Command) == 0 {
			return fmt.Errorf("image %q has no command: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	if !o.Addresses.IsValid() {
		o.Addresses = netip.MustParsePrefix("127.128.0.0/10")
	}
	if !o.Addresses.Addr().Is4() || !o.Addresses.Addr().IsLoopback() || o.Addresses.Bits() < 8 {
		return fmt.Errorf("addresses %s are not of the loopback: %w", o.Addresses, errdefs.ErrInvalidArgument)
	}
	if o.LogSize <= 0 {
		o.LogSize = 1 << 20
	}
	return nil
}

// lockDirectory sees to it that two programs do not run the same instances. The kernel ends the lock with the process.
func lockDirectory(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		holder := make([]byte, 20)
		n, _ := lock.Read(holder)
		return nil, fmt.Errorf("%s is in use by process %s: %w", dir, holder[:n], errdefs.ErrFailedPrecondition)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func writeAt(f *os.File, s string) error { _, err := f.WriteAt([]byte(s), 0); return err }

// Close lets go of the directory. The instances go on. Calls that are under way end with Unavailable; so do later ones.
func (r *Runtime) Close() error {
	r.cancel()
	for _, i := range r.all() {
		i.release()
	}
	r.group.Wait()
	if err := r.lock.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

var errClosed = fmt.Errorf("the runtime is closed: %w", errdefs.ErrUnavailable)

// check says whether there is any use in going on.
func (r *Runtime) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.ctx.Err() != nil {
		return errClosed
	}
	return nil
}

// find returns an instance with its lock held. It is released by the caller.
func (r *Runtime) find(ctx context.Context, name string) (*instance, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	i := r.instances[name]
	r.mu.Unlock()
	if i != nil {
		i.mu.Lock()
		if !i.deleted {
			return i, nil
		}
		i.mu.Unlock()
	}
	return nil, fmt.Errorf("instance %q: %w", name, errdefs.ErrNotFound)
}

// all returns the instances. An instance's lock may be taken before the runtime's, never after it.
func (r *Runtime) all() []*instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.instances))
}

// List implements [webspace.Runtime].
func (r *Runtime) List(ctx context.Context, prefix string) ([]webspace.Instance, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	var list []webspace.Instance
	for _, i := range r.all() {
		if strings.HasPrefix(i.name, prefix) {
			i.mu.Lock()
			if !i.deleted {
				list = append(list, i.read())
			}
			i.mu.Unlock()
		}
	}
	return list, nil
}

// Get implements [webspace.Runtime].
func (r *Runtime) Get(ctx context.Context, name string) (webspace.Instance, error) {
	i, err := r.find(ctx, name)
	if err != nil {
		return webspace.Instance{}, err
	}
	defer i.mu.Unlock()
	return i.read(), nil
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Create implements [webspace.Runtime].
func (r *Runtime) Create(ctx context.Context, name string, opts webspace.CreateOptions) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	if !label.MatchString(name) {
		return fmt.Errorf("instance name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	image, ok := r.opts.Images[opts.Image]
	if !ok {
		return fmt.Errorf("image %q: %w", opts.Image, errdefs.ErrNotFound)
	}
	i := &instance{name: name, dir: filepath.Join(r.dir, name)}
	i.mu.Lock()
	defer i.mu.Unlock()
	r.mu.Lock()
	if r.instances[name] != nil {
		r.mu.Unlock()
		return fmt.Errorf("instance %q: %w", name, errdefs.ErrAlreadyExists)
	}
	address, err := r.allocate(name)
	if err != nil {
		r.mu.Unlock()
		return err
	}
	r.instances[name] = i
	r.mu.Unlock()
	// A revision of an earlier instance of this name must not do for this one.
	i.meta = meta{Name: name, Image: opts.Image, Address: address, Record: slices.Clone(opts.Record), Revision: time.Now().UnixNano()}
	if err := r.install(i, image.Files); err != nil {
		r.forget(i)
		return fmt.Errorf("instance %q: %w", name, err)
	}
	r.emit(name)
	return nil
}

// forget takes an instance out of the index.
func (r *Runtime) forget(i *instance) {
	i.deleted = true
	r.mu.Lock()
	delete(r.instances, i.name)
	delete(r.addresses, i.meta.Address)
	r.mu.Unlock()
}

// Delete implements [webspace.Runtime].
func (r *Runtime) Delete(ctx context.Context, name string) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	defer i.mu.Unlock()
	if i.process != nil {
		return fmt.Errorf("instance %q is running: %w", name, errdefs.ErrFailedPrecondition)
	}
	sweep(i.dir)
	// Out of the way in one step: a half deleted instance is none.
	trash := filepath.Join(r.dir, fmt.Sprintf("%s%s-%d", trashPrefix, name, time.Now().UnixNano()))
	if err := os.Rename(i.dir, trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("instance %q: %w", name, err)
	}
	_ = os.RemoveAll(trash) // what is left goes when the directory is opened again
	r.forget(i)
	r.emit(name)
	return nil
}

// SetRecord implements [webspace.Runtime].
func (r *Runtime) SetRecord(ctx context.Context, name string, record []byte, revision string) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	defer i.mu.Unlock()
	if i.broken != nil {
		return fmt.Errorf("instance %q: %w: %w", name, errdefs.ErrFailedPrecondition, i.broken)
	}
	if revision != "" && revision != i.read().Revision {
		return fmt.Errorf("instance %q has changed: %w", name, errdefs.ErrConflict)
	}
	meta := i.meta
	meta.Record = slices.Clone(record)
	meta.Revision++
	if err := meta.write(i.dir); err != nil {
		return fmt.Errorf("instance %q: %w", name, err)
	}
	i.meta = meta
	r.emit(name)
	return nil
}
