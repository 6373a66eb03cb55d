package webspace

import (
	"context"
	"io"
	"net/netip"
	"time"
)

// Status is what an instance does.
type Status string

// The statuses of an instance. Anything a runtime knows beyond them is StatusError.
const (
	StatusStopped  Status = "stopped"
	StatusStarting Status = "starting"
	StatusRunning  Status = "running"
	StatusStopping Status = "stopping"
	StatusFrozen   Status = "frozen"
	StatusError    Status = "error"
)

// Instance is a container in a runtime, as it was when it was read.
type Instance struct {
	Name   string
	Status Status
	// Address is where the instance is reached. It comes from what the runtime assigned, never from what the guest
	// says: root in a guest can put any address on its interface. Zero if there is none (yet). It may be known while
	// the instance is stopped.
	Address netip.Addr
	// Record is what was stored with the instance, byte for byte; nil if nothing was.
	Record []byte
	// Revision stands for the state of Record, see [Runtime.SetRecord]. Opaque; it may also change for other reasons.
	Revision string
}

// CreateOptions say what a new instance is made of.
type CreateOptions struct {
	Image  string // alias or fingerprint
	Record []byte // stored with the instance in the same step; UTF-8 text, of which empty and none are the same
}

// Runtime runs instances. It is small on purpose: what a webspace is, who may do what, locking, retries and the
// meaning of the record are the [Manager]'s business.
//
// Names are made by the Manager from a prefix and a number ("ws-u1000"): lower-case DNS labels. A runtime touches no
// instance but the one named.
//
// Implementations are safe for concurrent use, for one instance too: of two conflicting calls one may fail with
// Conflict. Every call bounds itself even if ctx has no deadline, ends soon after ctx does and then returns an error that
// wraps ctx's; the operation may then go on or not, but never leaves an instance that can not be read, stopped and
// deleted. Errors are classes of github.com/containerd/errdefs. Besides those named below, each method may return
// Unavailable (the engine could not be reached or asked) and Conflict (the instance is busy; try again).
//
// Optional powers are interfaces of their own: [Watcher], [Imager], [Execer],
// [Consoler], [Logger], [Isolated].
// runtimetest.Run is the conformance suite.
type Runtime interface {
	// List returns the instances whose names begin with prefix, in any order. It is all or nothing: an error rather
	// than a part. An instance whose record or state makes no sense is returned all the same.
	List(ctx context.Context, prefix string) ([]Instance, error)

	// Get returns one instance. NotFound if there is none.
	Get(ctx context.Context, name string) (Instance, error)

	// Create makes a stopped instance. AlreadyExists if the name is taken, NotFound if there is no such image. After
	// an error either nothing is left or Get and Delete work on what is.
	Create(ctx context.Context, name string, opts CreateOptions) error

	// Delete removes a stopped instance with all its data. NotFound if there is none, FailedPrecondition if it runs.
	Delete(ctx context.Context, name string) error

	// Start starts an instance and returns once it runs; that it is ready for anything is not said. An instance that
	// runs already is a success. NotFound if there is none.
	Start(ctx context.Context, name string) error

	// Stop asks the instance to shut down, and kills it when it still runs after grace (0: at once). It returns when
	// the instance is stopped. One that is stopped already is a success. NotFound if there is none.
	Stop(ctx context.Context, name string, grace time.Duration) error

	// Restart is Stop and Start in one: FailedPrecondition if it does not run. NotFound if there is none.
	Restart(ctx context.Context, name string, grace time.Duration) error

	// SetRecord replaces the record if the instance's revision is still the given one, and else fails with Conflict
	// and changes nothing. An empty revision stands for any. NotFound if there is no instance. Of concurrent calls
	// with one revision at most one succeeds.
	SetRecord(ctx context.Context, name string, record []byte, revision string) error

	// State returns what the instance uses. NotFound if there is none. Of a stopped instance all is zero.
	State(ctx context.Context, name string) (State, error)
}

// State is what an instance does and uses at the moment. All of it is for people to read: network addresses are what
// the guest says.
type State struct {
	Status     Status
	StartedAt  time.Time // zero if unknown or stopped
	CPU        time.Duration
	Memory     int64            // bytes
	Disks      map[string]int64 // device name: bytes
	Processes  int64
	Interfaces map[string]Interface // without the loopback
}

// Interface is a network interface of an instance.
type Interface struct {
	MAC                          string
	MTU                          int
	State                        string // "up" or "down"
	BytesReceived, BytesSent     int64
	PacketsReceived, PacketsSent int64
	Addresses                    []InterfaceAddress
}

// InterfaceAddress is an address of an interface, as the guest set it.
type InterfaceAddress struct {
	Family  string // "inet" or "inet6"
	Address string
	Netmask string // prefix length
	Scope   string // "global", "link" or "local"
}

// Event says that something about an instance may have changed: created, deleted, started, stopped, its record or its
// address. What, has to be read. Events may be lost, doubled and reordered.
type Event struct {
	// Instance is its name. Empty: anything may have changed.
	Instance string
}

// Watcher is a [Runtime] that tells about changes.
type Watcher interface {
	// Watch calls notify for each event, one at a time, until ctx ends (returns ctx's error) or the stream is lost
	// (Unavailable); a stream that has gone silent without closing is noticed within 30 seconds. The first call is an
	// empty Event once the stream is established: changes after it are not missed while Watch runs. notify does not
	// block.
	Watch(ctx context.Context, notify func(Event)) error
}

// Image is what instances can be created from.
type Image struct {
	Aliases     []ImageAlias
	Fingerprint string // SHA-256, in hexadecimal
	Properties  map[string]string
	Size        int64 // bytes
}

// ImageAlias is a name of an image.
type ImageAlias struct{ Name, Description string }

// Imager is a [Runtime] that can list its images.
type Imager interface {
	Images(ctx context.Context) ([]Image, error)
}

// ExecOptions say what to run in an instance, and how.
type ExecOptions struct {
	Command []string // program and arguments; visible to others, so no secrets in it
	Env     map[string]string
	User    uint32
	Group   uint32
	Dir     string // working directory; empty: the user's home or /
	// Stdin is read until EOF; nil: empty. Neither stream is closed. A write error of Stdout or Stderr kills the
	// command. nil: discarded.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal makes the command interactive: Stdin and Stdout are then both ways of one terminal.
	Terminal *Terminal
}

// Terminal is the size of an interactive command's terminal and what happens to it.
type Terminal struct {
	Width, Height int
	// Resize and Signal are read until the command ends; nil: nothing ever happens.
	Resize <-chan TerminalSize
	Signal <-chan int
}

// TerminalSize is in characters.
type TerminalSize struct{ Width, Height int }

// Execer is a [Runtime] that can run commands in instances.
type Execer interface {
	// Exec runs a command in a running instance and returns its exit code once it has ended and its output is
	// written. When ctx ends, the command is killed. NotFound if there is no such instance, FailedPrecondition if it
	// does not run. A command that can not be found or executed ends with exit code 126 or 127, as in a shell.
	Exec(ctx context.Context, name string, opts ExecOptions) (exitCode int, err error)
}

// ConsoleOptions say what an instance's console is attached to.
type ConsoleOptions struct {
	// Stdin is what is typed. It is read until it ends, after which nothing more is typed; nil: nothing is. It is not
	// closed, and a Read that is under way when Console returns is not waited for.
	Stdin io.Reader
	// Stdout gets what the instance prints from now on. It is not closed. nil: discarded.
	Stdout io.Writer
	// Terminal is the size of the console, which not every engine passes on; its Signal is not used. nil: the console
	// keeps its size.
	Terminal *Terminal
}

// Consoler is a [Runtime] that can attach to the console of an instance: where it prints while it boots, and where a
// login may wait. A runtime whose instances do not listen there discards what is typed.
type Consoler interface {
	// Console attaches to the console of a running instance until the instance stops (nil), ctx ends, or Stdout fails
	// (its error). What runs on the console goes on in any case, and the console can be attached to again. NotFound if
	// there is no such instance, FailedPrecondition if it does not run, Conflict if the engine lets only one attach to
	// a console and somebody has.
	// After FailedPrecondition nothing of Stdin has been read.
	Console(ctx context.Context, name string, opts ConsoleOptions) error
}

// Logger is a [Runtime] that keeps what an instance prints on its console.
type Logger interface {
	// Log returns the console's log, at most the last limit bytes. NotFound if there is no such instance.
	Log(ctx context.Context, name string, limit int64) ([]byte, error)
	// ClearLog empties it.
	ClearLog(ctx context.Context, name string) error
}

// Isolated is a [Runtime] whose instances are systems of their own, with users, services and packages that are not this
// host's. Only in a runtime that says so, and is an [Execer] as well, are passwords set and SSH servers installed.
type Isolated interface{ Isolated() }
