package provider

import (
	"maps"
	"slices"
)

// Changes turn current routes into desired ones.
type Changes struct {
	Put    []Route  // to create or replace, sorted by name
	Delete []string // names of routes to remove, sorted
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool { return len(c.Put) == 0 && len(c.Delete) == 0 }

// Plan compares routes by name:
//
//	desired | current   | change
//	--------+-----------+-------
//	absent  | absent    | none
//	present | absent    | put
//	present | equal     | none
//	present | different | put
//	absent  | present   | delete
//
// It is pure. Names are expected to be unique; of several desired routes of one name the last counts.
func Plan(desired, current []Route) Changes {
	stale := make(map[string]Route, len(current))
	for _, r := range current {
		stale[r.Name] = r
	}
	put := make(map[string]Route, len(desired))
	for _, r := range desired {
		put[r.Name] = r
	}
	for name, want := range put {
		have, ok := stale[name]
		if ok && want.Equal(have) {
			delete(put, name)
		}
		delete(stale, name)
	}
	var c Changes
	for _, name := range slices.Sorted(maps.Keys(put)) {
		c.Put = append(c.Put, put[name])
	}
	c.Delete = slices.Sorted(maps.Keys(stale))
	return c
}
