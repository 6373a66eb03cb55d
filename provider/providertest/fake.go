package providertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/netsoc/webspaced/provider"
)

// Call is one thing a [Fake] is asked to do.
type Call struct {
	Op    Op
	Route string // name of the route of a put or delete
}

// Op is the kind of a [Call].
type Op string

// The kinds of calls. One Apply is one OpApply, then an OpPut or OpDelete for each change.
const (
	OpRoutes Op = "routes"
	OpApply  Op = "apply"
	OpPut    Op = "put"
	OpDelete Op = "delete"
)

// Fake is a [provider.Provider] that keeps its routes in memory, counts what it is asked and fails when told to. It
// passes [Run]. It is safe for concurrent use.
type Fake struct {
	deployment string
	store      *fakeStore

	mu    sync.Mutex
	hook  func(context.Context, Call) error
	calls map[Op]int
}

// fakeStore is what the Fakes of several deployments share.
type fakeStore struct {
	mu      sync.Mutex
	entries map[fakeKey]provider.Route
}

type fakeKey struct{ deployment, route string }

// NewFake returns a Fake on an empty store of its own.
func NewFake() *Fake {
	return &Fake{
		deployment: "fake",
		store:      &fakeStore{entries: make(map[fakeKey]provider.Route)},
		calls:      make(map[Op]int),
	}
}

// Deployment returns a Fake for another deployment on f's store, or, for the same deployment's name ("fake"), what f
// would be after a restart.
func (f *Fake) Deployment(name string) *Fake {
	return &Fake{deployment: name, store: f.store, calls: make(map[Op]int)}
}

// Hook has fn called before each call is carried out. What it returns, if not nil, is the outcome: the error of Routes
// or of the whole Apply, or, for a put or delete, that of the one change. It may wait, too, but then ends with ctx.
// nil removes it.
func (f *Fake) Hook(fn func(ctx context.Context, call Call) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = fn
}

// Calls returns how often f was asked to do op, failures included.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Route returns the stored route of that name.
func (f *Fake) Route(name string) (provider.Route, bool) {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	r, ok := f.store.entries[fakeKey{f.deployment, name}]
	return r, ok
}

// Damage makes the stored route of that name one that somebody else has edited.
func (f *Fake) Damage(name string) {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	if _, ok := f.store.entries[fakeKey{f.deployment, name}]; ok {
		f.store.entries[fakeKey{f.deployment, name}] = provider.Route{Name: name}
	}
}

// Routes implements [provider.Provider]. The routes are sorted by name.
func (f *Fake) Routes(ctx context.Context) ([]provider.Route, error) {
	if err := f.call(ctx, Call{Op: OpRoutes}); err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	var routes []provider.Route
	for key, r := range f.store.entries {
		if key.deployment == f.deployment {
			r.Hosts, r.Certificates = slices.Clone(r.Hosts), slices.Clone(r.Certificates)
			routes = append(routes, r)
		}
	}
	slices.SortFunc(routes, byName)
	return routes, nil
}

// Apply implements [provider.Provider].
func (f *Fake) Apply(ctx context.Context, changes provider.Changes) error {
	if err := f.call(ctx, Call{Op: OpApply}); err != nil {
		return err
	}
	var errs []error
	change := func(op Op, name string, do func(map[fakeKey]provider.Route, fakeKey)) error {
		err := f.call(ctx, Call{Op: op, Route: name})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, &provider.RouteError{Route: name, Err: err})
			return nil
		}
		f.store.mu.Lock()
		defer f.store.mu.Unlock()
		do(f.store.entries, fakeKey{f.deployment, name})
		return nil
	}
	for _, r := range changes.Put {
		if err := r.Validate(); err != nil {
			errs = append(errs, &provider.RouteError{Route: r.Name, Err: err})
			continue
		}
		r.Hosts, r.Certificates = slices.Clone(r.Hosts), slices.Clone(r.Certificates)
		put := func(m map[fakeKey]provider.Route, key fakeKey) { m[key] = r }
		if err := change(OpPut, r.Name, put); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for _, name := range changes.Delete {
		remove := func(m map[fakeKey]provider.Route, key fakeKey) { delete(m, key) }
		if err := change(OpDelete, name, remove); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

func (f *Fake) call(ctx context.Context, call Call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	f.calls[call.Op]++
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, call)
}

func byName(a, b provider.Route) int { return strings.Compare(a.Name, b.Name) }
