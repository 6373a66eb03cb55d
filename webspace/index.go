package webspace

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/netsoc/webspaced/identity"
)

// index is what is known of all webspaces, from the last time each was read. It answers who owns a host name or a port
// without asking the runtime. Of several webspaces that claim one name, which only edits behind our back or usernames
// that differ in case can cause, the lowest user ID has it: the older account, on every replica and after each restart.
type index struct {
	mu      sync.RWMutex
	clock   uint64            // counts changes and touches
	strange uint64            // clock at the last touch of a name that is not known
	removed uint64            // clock at the last removal
	entries map[string]*entry // by instance name
	hosts   map[string][]*entry
	ports   map[int][]*entry

	// What is being added to a record, from the check until the record is written.
	reservedHosts map[string]bool
	reservedPorts map[int]bool

	followers followers // are told what changes
}

// entry is one webspace. Its fields are guarded by index.mu; activation guards itself.
type entry struct {
	name string
	user identity.UserID
	view
	changed    uint64 // index.clock at the last change
	touched    uint64 // index.clock at the last event
	read       uint64 // index.clock before the last read: what was touched later has to be read again
	activation activation
}

// view is what was read of a webspace.
type view struct {
	known    bool // the instance was read; false for a name that is reserved during a creation
	status   Status
	address  netip.Addr
	record   record
	bad      error    // why the webspace is quarantined
	username string   // when the user was last looked up; empty if nobody has
	label    string   // of the default domain; empty if the user has none
	hosts    []string // claimed, the default domain first
	problems []string // what is wrong with it, for its owner and the operator
	detour   bool     // about to be stopped: its route goes to the gateway whatever its state
	deleting bool     // about to be deleted: no route
}

func newIndex() *index {
	return &index{
		entries: make(map[string]*entry), hosts: make(map[string][]*entry), ports: make(map[int][]*entry),
		reservedHosts: make(map[string]bool), reservedPorts: make(map[int]bool),
	}
}

// now is a point in the index's history, to be taken before something is read.
func (x *index) now() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.clock
}

// find returns the entry of an instance, or nil.
func (x *index) find(name string) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.entries[name]
}

// look returns what was read of e.
func (x *index) look(e *entry) view {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return e.view
}

// update changes a webspace's entry, which is made if need be. The result names the webspaces that won or lost a host
// name by it. If the entry has changed after the given point, nothing happens: what was read before is stale.
func (x *index) update(name string, user identity.UserID, since uint64, change func(*view)) (affected []string, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.entries[name]
	switch {
	case e == nil && x.removed > since, e != nil && e.changed > since:
		return nil, false // the webspace that was removed may be this one
	case e == nil:
		e = &entry{name: name, user: user, touched: x.strange}
		e.activation.init()
		x.entries[name] = e
	}
	affected = x.change(e, change)
	e.read = min(since, x.clock)
	return affected, true
}

// touch says that something has happened to a webspace: what was read of it before may be out of date.
func (x *index) touch(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.clock++
	if e := x.entries[name]; e != nil {
		e.touched = x.clock
	} else {
		x.strange = x.clock
	}
}

// stale reports whether a webspace has to be read: something has happened to it since it was last, or it is not known.
func (x *index) stale(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e := x.entries[name]
	return e == nil || e.touched > e.read
}

// adjust changes an entry if it is there, whatever happened before.
func (x *index) adjust(name string, change func(*view)) (affected []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.entries[name]; e != nil {
		return x.change(e, change)
	}
	return nil
}

func (x *index) change(e *entry, change func(*view)) []string {
	before := x.owners(e.hosts)
	x.withdraw(e)
	claimed, past := e.hosts, e.view
	change(&e.view)
	e.activation.observe(e.status, e.address)
	x.followers.tellChanges(e.name, past, e.view)
	x.clock++
	e.changed = x.clock
	for _, host := range e.hosts {
		x.hosts[host] = insert(x.hosts[host], e)
	}
	for external := range e.record.Ports {
		x.ports[external] = insert(x.ports[external], e)
	}
	affected := append(before, x.owners(claimed)...)
	for _, host := range e.hosts {
		for _, other := range x.hosts[host][:min(2, len(x.hosts[host]))] {
			affected = append(affected, other.name) // the owner, and whoever was the owner before e came
		}
	}
	return compactOthers(affected, e.name)
}

// remove forgets a webspace.
func (x *index) remove(name string, since uint64) (affected []string, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.entries[name]
	if e == nil {
		return nil, true
	}
	if e.changed > since {
		return nil, false
	}
	x.withdraw(e)
	delete(x.entries, name)
	e.activation.observe(StatusStopped, netip.Addr{}) // wakes who still waits for it
	x.clock++
	x.removed = x.clock
	x.followers.publish(name, newNotice(NoticeDeleted, "It was deleted."))
	return compactOthers(x.owners(e.hosts), name), true
}

func (x *index) withdraw(e *entry) {
	for _, host := range e.hosts {
		drop(x.hosts, host, e)
	}
	for external := range e.record.Ports {
		drop(x.ports, external, e)
	}
}

func (x *index) owners(hosts []string) (names []string) {
	for _, host := range hosts {
		if line := x.hosts[host]; len(line) > 0 {
			names = append(names, line[0].name)
		}
	}
	return names
}

// ownerOf returns who has a host name.
func (x *index) ownerOf(host string) *entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if line := x.hosts[host]; len(line) > 0 {
		return line[0]
	}
	return nil
}

// owned splits the host names that e claims into those it has and those that somebody else has.
func (x *index) owned(e *entry) (has, lost []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, host := range e.hosts {
		if line := x.hosts[host]; len(line) > 0 && line[0] == e {
			has = append(has, host)
		} else {
			lost = append(lost, host)
		}
	}
	return has, lost
}

// reserveHost keeps a host name that nobody has for the caller until it is released. The webspace named may have it.
func (x *index) reserveHost(host, name string) (release func(), ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if line := x.hosts[host]; x.reservedHosts[host] || len(line) > 0 && line[0].name != name {
		return nil, false
	}
	x.reservedHosts[host] = true
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.reservedHosts, host)
	}, true
}

// reservePort does the same for an external port. Of several candidates it takes one at random.
func (x *index) reservePort(first, last int) (port int, release func(), ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var free []int
	for port := first; port <= last; port++ {
		if len(x.ports[port]) == 0 && !x.reservedPorts[port] {
			free = append(free, port)
		}
	}
	if len(free) == 0 {
		return 0, nil, false
	}
	port = free[rand.IntN(len(free))]
	x.reservedPorts[port] = true
	return port, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.reservedPorts, port)
	}, true
}

// all returns all entries, by user.
func (x *index) all() []*entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	entries := make([]*entry, 0, len(x.entries))
	for _, e := range x.entries {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, byUser)
	return entries
}

func byUser(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.user, b.user), strings.Compare(a.name, b.name))
}

func insert(line []*entry, e *entry) []*entry {
	i, found := slices.BinarySearchFunc(line, e, byUser)
	if found {
		return line
	}
	return slices.Insert(line, i, e)
}

func drop[K comparable](lines map[K][]*entry, key K, e *entry) {
	line := lines[key]
	if i, found := slices.BinarySearchFunc(line, e, byUser); found {
		line = slices.Delete(line, i, i+1)
	}
	if len(line) == 0 {
		delete(lines, key)
	} else {
		lines[key] = line
	}
}

func compactOthers(names []string, except string) []string {
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(name string) bool { return name == except })
}
