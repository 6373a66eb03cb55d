package config

import (
	"encoding"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Key describes one key of the configuration.
type Key struct {
	Name    string // with its sections: "http.listen_address"
	Env     string // the environment variable that sets it
	Default string // as in YAML; empty if there is none
	Doc     string
	File    bool // there are also Name_file and Env_FILE, which name a file with the value
}

// Keys returns all keys in the order of [Config]. Those inside the elements of a list are not among them.
func Keys() []Key { return keysOf(reflect.TypeFor[Config](), "", envPrefix) }

func keysOf(t reflect.Type, path, env string) []Key {
	var keys []Key
	for _, f := range fieldsOf(t) {
		if f.section {
			keys = append(keys, keysOf(f.typ, path+f.name+".", f.env(env)+"_")...)
			continue
		}
		keys = append(keys, Key{Name: path + f.name, Env: f.env(env), Default: f.tag.Get("default"), Doc: f.tag.Get("doc"), File: f.file})
	}
	return keys
}

// field is a key or a section as its struct declares it.
type field struct {
	name    string
	index   int
	typ     reflect.Type
	section bool
	file    bool // has a twin
	tag     reflect.StructTag
}

const (
	envPrefix  = "WSD_"
	fileSuffix = "_file"
)

func (f field) env(prefix string) string { return prefix + strings.ToUpper(f.name) }

func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("yaml")
		if name == "-" {
			continue
		}
		typ := t.Field(i).Type
		fields = append(fields, field{
			name: name, index: i, typ: typ, tag: tag,
			section: isSection(typ), file: tag.Get("file") == "yes",
		})
	}
	return fields
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isSection reports whether t is a struct with keys in it, rather than a value that happens to be a struct.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textType)
}

// nearest returns the name that name was most likely meant to be: the nearest one if it is near, or else the key of
// another section that has this name. It is empty if there is none.
func nearest(name string, t reflect.Type) string {
	best, least := "", max(2, len(name)/3)+1
	for _, f := range fieldsOf(t) {
		names := []string{f.name}
		if f.file {
			names = append(names, f.name+fileSuffix)
		}
		for _, n := range names {
			if d := distance(name, n); d < least {
				best, least = n, d
			}
		}
	}
	return best
}

// elsewhere returns the one key that has the name in some section; empty if there is none or more than one.
func elsewhere(name string) string {
	keys := slices.DeleteFunc(Keys(), func(k Key) bool { return !strings.HasSuffix(k.Name, "."+name) })
	if len(keys) != 1 {
		return ""
	}
	return keys[0].Name
}

// nearestEnv returns the environment variable that name was most likely meant to be; empty if none is near.
func nearestEnv(name string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, k := range Keys() {
		if d := distance(name, k.Env); d < least {
			best, least = k.Env, d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or replace to turn a into b. Long names are not compared.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
