// Package access decides who may do what with which webspace. It is the only holder of the Manager: whoever handles
// requests gets at a webspace through a [Reader] or [Writer] alone, and only the [Gate] makes those, after it has asked
// authorize. A handler that forgets to ask does not compile.
package access

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/webspace"
)

// Self stands for the username of whoever asks.
const Self = "self"

// action is what somebody wants to do with a webspace.
type action int

const (
	read action = iota
	write
	boot // for a reverse proxy, on behalf of whoever visits
	list // all webspaces; they have no one owner
)

// authorize is the policy: a user reaches only their own webspace, an admin any, and only an admin what concerns all or
// serves the machinery. The owner is 0 if it is somebody else whom the actor has no business to know of.
func authorize(actor identity.User, what action, owner identity.UserID) error {
	switch {
	case actor.ID <= 0:
		return fmt.Errorf("no user: %w", errdefs.ErrUnauthenticated)
	case what == list || what == boot:
		if actor.Admin && (what == list || owner > 0) {
			return nil
		}
		return fmt.Errorf("this is for admins: %w", errdefs.ErrPermissionDenied)
	case what != read && what != write:
		return fmt.Errorf("unknown action %d: %w", what, errdefs.ErrPermissionDenied)
	case actor.Admin && owner > 0, actor.ID == owner:
		return nil
	}
	return fmt.Errorf("this webspace is somebody else's: %w", errdefs.ErrPermissionDenied)
}

type actorKey struct{}

// caller is who asks, and how we know.
type caller struct {
	user  identity.User
	token string
}

// Gate guards a Manager.
type Gate struct {
	manager   *webspace.Manager
	auth      identity.Authenticator
	directory identity.Directory
}

// NewGate returns the gate of a Manager. auth says who asks; directory finds the users whose webspaces admins ask for.
func NewGate(manager *webspace.Manager, auth identity.Authenticator, directory identity.Directory) *Gate {
	return &Gate{manager, auth, directory}
}

// Authenticate returns a context in which the user whose token this is is the one who asks: the actor. Errors are those
// of [identity.Authenticator].
func (g *Gate) Authenticate(ctx context.Context, token string) (context.Context, error) {
	if token == "" || len(token) > identity.MaxToken {
		return nil, fmt.Errorf("the token is missing or too long: %w", errdefs.ErrUnauthenticated)
	}
	actor, err := g.auth.Authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, actorKey{}, caller{actor, token}), nil
}

// Actor returns the user who asks, of a context that [Gate.Authenticate] returned.
func Actor(ctx context.Context) identity.User {
	from, _ := ctx.Value(actorKey{}).(caller)
	return from.user
}

// Images needs no permission.
func (g *Gate) Images(ctx context.Context) ([]webspace.Image, error) { return g.manager.Images(ctx) }

// Healthy needs no permission.
func (g *Gate) Healthy(ctx context.Context) error { return g.manager.Healthy(ctx) }

// Ready needs no permission. Unavailable until all webspaces have been read for the first time.
func (g *Gate) Ready() error {
	select {
	case <-g.manager.Synced():
		return nil
	default:
		return fmt.Errorf("the webspaces have not been read yet: %w", errdefs.ErrUnavailable)
	}
}

// List returns all webspaces, by user. PermissionDenied if the actor of ctx is no admin; Unavailable before the webspaces
// have been read.
func (g *Gate) List(ctx context.Context) ([]webspace.Summary, error) {
	if err := authorize(Actor(ctx), list, 0); err != nil {
		return nil, err
	}
	if err := g.Ready(); err != nil {
		return nil, err
	}
	return g.manager.Summaries(), nil
}

// EnsureStarted is [webspace.Manager.EnsureStarted], for admins. Further errors are those of Read.
func (g *Gate) EnsureStarted(ctx context.Context, username string) (netip.AddrPort, error) {
	owner, err := g.pass(ctx, boot, username)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return g.manager.EnsureStarted(ctx, owner.ID)
}

// Read lets the actor of ctx look at a user's webspace. Errors: Unauthenticated without an actor, PermissionDenied,
// NotFound if there is no such user, Unavailable if the directory can not tell.
func (g *Gate) Read(ctx context.Context, username string) (Reader, error) {
	owner, err := g.pass(ctx, read, username)
	if err != nil {
		return Reader{}, err
	}
	return Reader{g.manager, owner}, nil
}

// Write lets the actor of ctx change a user's webspace as well. Errors are those of Read.
func (g *Gate) Write(ctx context.Context, username string) (Writer, error) {
	owner, err := g.pass(ctx, write, username)
	if err != nil {
		return Writer{}, err
	}
	return Writer{Reader{g.manager, owner}}, nil
}

func (g *Gate) pass(ctx context.Context, what action, username string) (identity.User, error) {
	actor := Actor(ctx)
	var owner identity.User
	switch {
	case username == Self || username == actor.Username:
		owner = actor
	case actor.Admin:
		var err error
		if owner, err = g.directory.ByUsername(ctx, username); err != nil {
			return identity.User{}, fmt.Errorf("user %.64q: %w", username, err)
		}
	}
	return owner, authorize(actor, what, owner.ID)
}

// Reader looks at the webspace of one user.
type Reader struct {
	manager *webspace.Manager
	owner   identity.User
}

// Get is [webspace.Manager.Get].
func (r Reader) Get(ctx context.Context) (webspace.Webspace, error) {
	return r.manager.Get(ctx, r.owner.ID)
}

// State is [webspace.Manager.State].
func (r Reader) State(ctx context.Context) (webspace.State, error) {
	return r.manager.State(ctx, r.owner.ID)
}

// Problem is what [webspace.Summary.Problem] says.
func (r Reader) Problem() string {
	s, _ := r.manager.Summary(r.owner.ID)
	return s.Problem
}

// Domains is [webspace.Manager.Domains].
func (r Reader) Domains(ctx context.Context) ([]string, error) {
	return r.manager.Domains(ctx, r.owner)
}

// Log is [webspace.Manager.Log].
func (r Reader) Log(ctx context.Context, limit int64) ([]byte, error) {
	return r.manager.Log(ctx, r.owner.ID, limit)
}

// Follow is [webspace.Manager.Follow].
func (r Reader) Follow(ctx context.Context, notify func(webspace.Notice)) error {
	return r.manager.Follow(ctx, r.owner.ID, notify)
}

// Owner is the user whose webspace it is.
func (r Reader) Owner() identity.UserID { return r.owner.ID }

// Writer changes the webspace of one user.
type Writer struct{ Reader }

// Create is [webspace.Manager.Create].
func (w Writer) Create(ctx context.Context, req webspace.CreateRequest) (webspace.Webspace, error) {
	return w.manager.Create(ctx, w.owner, req)
}

// Delete is [webspace.Manager.Delete].
func (w Writer) Delete(ctx context.Context) error { return w.manager.Delete(ctx, w.owner.ID) }

// Start is [webspace.Manager.Start].
func (w Writer) Start(ctx context.Context) error { return w.manager.Start(ctx, w.owner.ID) }

// Stop is [webspace.Manager.Stop].
func (w Writer) Stop(ctx context.Context) error { return w.manager.Stop(ctx, w.owner.ID) }

// Restart is [webspace.Manager.Restart].
func (w Writer) Restart(ctx context.Context) error { return w.manager.Restart(ctx, w.owner.ID) }

// SetConfig is [webspace.Manager.SetConfig].
func (w Writer) SetConfig(ctx context.Context, change webspace.ConfigChange) (webspace.Config, error) {
	return w.manager.SetConfig(ctx, w.owner.ID, change)
}

// Sync is [webspace.Manager.Sync].
func (w Writer) Sync(ctx context.Context) error { return w.manager.Sync(ctx, w.owner.ID) }

// AddDomain is [webspace.Manager.AddDomain].
func (w Writer) AddDomain(ctx context.Context, domain string) error {
	return w.manager.AddDomain(ctx, w.owner.ID, domain)
}

// RemoveDomain is [webspace.Manager.RemoveDomain], and InvalidArgument for the default domain.
func (w Writer) RemoveDomain(ctx context.Context, domain string) error {
	err := w.manager.RemoveDomain(ctx, w.owner.ID, domain)
	if !errdefs.IsNotFound(err) {
		return err
	}
	host, parseErr := provider.ParseHost(domain)
	domains, readErr := w.manager.Domains(ctx, w.owner)
	if parseErr == nil && readErr == nil && slices.Contains(domains, host.String()) {
		return fmt.Errorf("domain %s is the default one and stays: %w", host, errdefs.ErrInvalidArgument)
	}
	return err
}

// AddPort is [webspace.Manager.AddPort].
func (w Writer) AddPort(ctx context.Context, external, internal int) (int, error) {
	return w.manager.AddPort(ctx, w.owner.ID, external, internal)
}

// RemovePort is [webspace.Manager.RemovePort].
func (w Writer) RemovePort(ctx context.Context, external int) error {
	return w.manager.RemovePort(ctx, w.owner.ID, external)
}

// ClearLog is [webspace.Manager.ClearLog].
func (w Writer) ClearLog(ctx context.Context) error { return w.manager.ClearLog(ctx, w.owner.ID) }

// Shell is [webspace.Manager.Shell].
func (w Writer) Shell(ctx context.Context, command string) (webspace.ShellResult, error) {
	return w.manager.Shell(ctx, w.owner.ID, command)
}
