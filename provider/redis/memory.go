package redis

import (
	"maps"
	"slices"
	"sync"
)

// memory has the keys of routes that stand whole, as far as this Provider knows. With it, a change does not take a look at
// all keys. Keys that others add to a route meanwhile are seen by Routes, and go with the next change after it.
type memory struct {
	mu    sync.Mutex
	clock uint64
	read  bool // by Routes: of what is not here, there is none
	known map[string]remembered
}

type remembered struct {
	keys []string // nil: not known
	at   uint64
}

// now is the time at which a look at the store begins.
func (m *memory) now() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock
}

// replace takes in a look at the whole store that began at a time. What was written since is kept.
func (m *memory) replace(seen map[string][]string, since uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[string]remembered, len(seen))
	for name, keys := range seen {
		next[name] = remembered{keys, since}
	}
	for name, r := range m.known {
		if r.at > since {
			next[name] = r
		}
	}
	m.known, m.read = next, true
}

// note keeps what has been written of a route; after an error, that nobody knows.
func (m *memory) note(name string, written entries, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	r := remembered{at: m.clock}
	if err == nil {
		r.keys = slices.AppendSeq(make([]string, 0, len(written)), maps.Keys(written))
	}
	if m.known == nil {
		m.known = make(map[string]remembered)
	}
	m.known[name] = r
}

// keys returns all keys that these routes have or are to have. It is not certain of routes that are to go: these are looked
// for everywhere, since nobody would come back for what is left of them.
func (m *memory) keys(wanted map[string]entries) (keys []string, certain bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, want := range wanted {
		r, ok := m.known[name]
		if want == nil || ok && r.keys == nil || !ok && !m.read {
			return nil, false
		}
		keys = slices.AppendSeq(keys, maps.Keys(want))
		for _, key := range r.keys {
			if _, ok := want[key]; !ok {
				keys = append(keys, key)
			}
		}
	}
	return keys, true
}
