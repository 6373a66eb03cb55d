package runtimetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// FakeOptions say how a [Fake] behaves. The zero value is a runtime that never fails and takes no time.
type FakeOptions struct {
	// Images are what instances can be created from, by alias or fingerprint. Default: one with the alias "hello".
	Images []webspace.Image
	// Addresses is what instances get their addresses from. Default: 127.64.0.0/10, from a random one on, so that
	// the fakes of several test programs can listen at the same time.
	Addresses netip.Prefix

	// BootDelay is how long an instance is starting, StopDelay how long it takes to shut down when asked.
	BootDelay, StopDelay time.Duration

	// Serve makes an instance listen on its address, which must then be one of the loopback: from ListenDelay after
	// it started until it stops, whatever handler Serve returns for its name answers HTTP on Port. It is called at
	// each start. A failure to listen is the guest's: it is a line in the console log.
	Serve       func(name string) http.Handler
	Port        uint16 // default: 8080
	ListenDelay time.Duration

	// Before is called before each operation, with the name of the method ("Start") and of the instance (List: the
	// prefix; Images: empty). It may block. An error is returned in place of running the operation.
	Before func(ctx context.Context, op, name string) error
	// After is called with the result of each operation, and its own is returned: an error stands for an answer
	// that was lost after the work was done.
	After func(ctx context.Context, op, name string, err error) error

	Events EventFaults
}

// EventFaults are the chances, from 0 to 1, that an event meets with something. One seed gives one sequence.
type EventFaults struct {
	Drop    float64 // never delivered
	Double  float64 // delivered twice
	Reorder float64 // held back until after the next one
	Seed    uint64
}

// Fake is a runtime in memory. It implements all optional interfaces but [webspace.Isolated], passes [Run], and can be told
// to misbehave. Without FakeOptions.Serve it does no input or output and takes the time from package time alone: it works
// in a testing/synctest bubble. All its methods are safe for concurrent use.
//
// An instance has a shell that knows just enough for the suite, see [Fake.Exec].
type Fake struct {
	opts FakeOptions

	mu        sync.Mutex
	instances map[string]*fakeInstance
	addresses map[netip.Addr]bool // those of instances
	next      netip.Addr
	revision  uint64
	calls     map[string]int
	watches   map[*fakeWatch]bool
	held      *webspace.Event // by EventFaults.Reorder
	random    *rand.Rand
	servers   sync.WaitGroup
}

type fakeInstance struct {
	webspace.Instance
	startedAt time.Time
	flight    *flight
	site      *site
	down      chan struct{} // closed when a running instance stops
	commands  int           // that run
	log       []byte
	consoles  map[*fakeConsole]bool
}

// flight is a start or stop that is under way.
type flight struct {
	to    webspace.Status
	timer *time.Timer
	done  chan struct{}
	err   error // once done
}

var _ interface {
	webspace.Runtime
	webspace.Watcher
	webspace.Imager
	webspace.Execer
	webspace.Consoler
	webspace.Logger
} = (*Fake)(nil)

// NewFake returns an empty runtime. If it serves, Close it.
func NewFake(opts *FakeOptions) *Fake {
	f := &Fake{
		instances: map[string]*fakeInstance{},
		addresses: map[netip.Addr]bool{},
		calls:     map[string]int{},
		watches:   map[*fakeWatch]bool{},
	}
	if opts != nil {
		f.opts = *opts
	}
	if f.opts.Images == nil {
		f.opts.Images = []webspace.Image{{
			Aliases:     []webspace.ImageAlias{{Name: "hello", Description: "A small site"}},
			Fingerprint: strings.Repeat("5a", 32),
			Properties:  map[string]string{"os": "fake"},
			Size:        1 << 20,
		}}
	}
	if f.opts.Port == 0 {
		f.opts.Port = 8080
	}
	f.random = rand.New(rand.NewPCG(f.opts.Events.Seed, 0))
	if f.opts.Addresses.IsValid() {
		f.next = f.opts.Addresses.Masked().Addr()
	} else {
		f.opts.Addresses = netip.MustParsePrefix("127.64.0.0/10")
		f.next = netip.AddrFrom4([4]byte{127, byte(64 + rand.N(64)), byte(rand.N(256)), byte(rand.N(256))})
	}
	return f
}

// Close ends everything that serves, and waits for it. The instances stay.
func (f *Fake) Close() error {
	f.mu.Lock()
	for _, i := range f.instances {
		f.settle(i, webspace.StatusStopped)
	}
	f.mu.Unlock()
	f.servers.Wait()
	return nil
}

// do counts an operation and puts the hooks around it.
func (f *Fake) do(ctx context.Context, op, name string, run func() error) error {
	f.mu.Lock()
	f.calls[op]++
	f.mu.Unlock()
	if f.opts.Before != nil {
		if err := f.opts.Before(ctx, op, name); err != nil {
			return err
		}
	}
	err := ctx.Err()
	if err == nil {
		err = run()
	}
	if f.opts.After != nil {
		err = f.opts.After(ctx, op, name, err)
	}
	return err
}

func (f *Fake) find(name string) (*fakeInstance, error) {
	if i := f.instances[name]; i != nil {
		return i, nil
	}
	return nil, fmt.Errorf("instance %q: %w", name, errdefs.ErrNotFound)
}

func (i *fakeInstance) read() webspace.Instance {
	r := i.Instance
	r.Record = bytes.Clone(r.Record)
	return r
}

// List implements [webspace.Runtime].
func (f *Fake) List(ctx context.Context, prefix string) (list []webspace.Instance, err error) {
	err = f.do(ctx, "List", prefix, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for name, i := range f.instances {
			if strings.HasPrefix(name, prefix) {
				list = append(list, i.read())
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Get implements [webspace.Runtime].
func (f *Fake) Get(ctx context.Context, name string) (instance webspace.Instance, err error) {
	err = f.do(ctx, "Get", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err != nil {
			return err
		}
		instance = i.read()
		return nil
	})
	return instance, err
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Create implements [webspace.Runtime].
func (f *Fake) Create(ctx context.Context, name string, opts webspace.CreateOptions) error {
	return f.do(ctx, "Create", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !label.MatchString(name) {
			return fmt.Errorf("instance name %q: %w", name, errdefs.ErrInvalidArgument)
		}
		if f.instances[name] != nil {
			return fmt.Errorf("instance %q: %w", name, errdefs.ErrAlreadyExists)
		}
		if !f.hasImage(opts.Image) {
			return fmt.Errorf("image %q: %w", opts.Image, errdefs.ErrNotFound)
		}
		address, err := f.allocate()
		if err != nil {
			return err
		}
		f.put(webspace.Instance{Name: name, Status: webspace.StatusStopped, Address: address, Record: opts.Record})
		return nil
	})
}

func (f *Fake) hasImage(ref string) bool {
	for _, image := range f.opts.Images {
		if image.Fingerprint == ref && ref != "" {
			return true
		}
		for _, alias := range image.Aliases {
			if alias.Name == ref {
				return true
			}
		}
	}
	return false
}

// allocate finds the next free address. Its cost does not grow with the number of instances.
func (f *Fake) allocate() (netip.Addr, error) {
	for range len(f.addresses) + 1 {
		address := f.next
		if f.next = f.next.Next(); !f.opts.Addresses.Contains(f.next) {
			f.next = f.opts.Addresses.Masked().Addr()
		}
		if !f.addresses[address] {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address is left in %s: %w", f.opts.Addresses, errdefs.ErrResourceExhausted)
}

func (f *Fake) put(instance webspace.Instance) {
	i := &fakeInstance{Instance: instance, consoles: map[*fakeConsole]bool{}}
	i.Record = bytes.Clone(i.Record)
	status := i.Status
	if status == "" {
		status = webspace.StatusStopped
	}
	i.Status = "" // whatever it is now, it is new
	f.instances[i.Name] = i
	if i.Address.IsValid() {
		f.addresses[i.Address] = true
	}
	f.settle(i, status)
}

func (f *Fake) remove(i *fakeInstance) {
	f.settle(i, webspace.StatusStopped)
	delete(f.instances, i.Name)
	delete(f.addresses, i.Address)
	f.emit(i.Name)
}

// Delete implements [webspace.Runtime].
func (f *Fake) Delete(ctx context.Context, name string) error {
	return f.do(ctx, "Delete", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err != nil {
			return err
		}
		if i.Status != webspace.StatusStopped && i.Status != webspace.StatusError {
			return fmt.Errorf("instance %q is %s: %w", name, i.Status, errdefs.ErrFailedPrecondition)
		}
		f.remove(i)
		return nil
	})
}

// SetRecord implements [webspace.Runtime].
func (f *Fake) SetRecord(ctx context.Context, name string, record []byte, revision string) error {
	return f.do(ctx, "SetRecord", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err != nil {
			return err
		}
		if revision != "" && revision != i.Revision {
			return fmt.Errorf("instance %q has changed: %w", name, errdefs.ErrConflict)
		}
		i.Record = bytes.Clone(record)
		f.changed(i)
		return nil
	})
}

// State implements [webspace.Runtime].
func (f *Fake) State(ctx context.Context, name string) (state webspace.State, err error) {
	err = f.do(ctx, "State", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err != nil {
			return err
		}
		state.Status = i.Status
		if i.down == nil {
			return nil
		}
		state.StartedAt = i.startedAt
		state.CPU = time.Since(i.startedAt)/100 + time.Millisecond
		state.Memory = 16 << 20
		state.Processes = 3 + int64(i.commands)
		state.Disks = map[string]int64{"root": 1 << 20}
		state.Interfaces = map[string]webspace.Interface{"eth0": {
			MAC: "00:16:3e:00:00:01", MTU: 1500, State: "up",
			Addresses: []webspace.InterfaceAddress{
				{Family: "inet", Address: i.Address.String(), Netmask: "8", Scope: "global"},
			},
		}}
		return nil
	})
	return state, err
}

// Images implements [webspace.Imager].
func (f *Fake) Images(ctx context.Context) (images []webspace.Image, err error) {
	err = f.do(ctx, "Images", "", func() error {
		images = append(images, f.opts.Images...)
		return nil
	})
	return images, err
}

// Log implements [webspace.Logger].
func (f *Fake) Log(ctx context.Context, name string, limit int64) (log []byte, err error) {
	err = f.do(ctx, "Log", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err != nil {
			return err
		}
		log = bytes.Clone(i.log[max(0, int64(len(i.log))-limit):])
		return nil
	})
	return log, err
}

// ClearLog implements [webspace.Logger].
func (f *Fake) ClearLog(ctx context.Context, name string) error {
	return f.do(ctx, "ClearLog", name, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		i, err := f.find(name)
		if err == nil {
			i.log = nil
		}
		return err
	})
}

// changed gives the instance a new revision and tells the watchers. As with a real engine a revision stands for more
// than the record, so that whoever holds on to one for long meets with Conflict.
func (f *Fake) changed(i *fakeInstance) {
	f.revision++
	i.Revision = strconv.FormatUint(f.revision, 10)
	f.emit(i.Name)
}
