package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// section sets the fields of the struct v from the mapping node, which may be nil, and the environment. Errors say that
// they are from source; env is the prefix of the variables, empty where there are none.
func (l *loader) section(node *yaml.Node, v reflect.Value, path, env, source string) {
	nodes := l.mapping(node, path, source)
	for _, f := range fieldsOf(v.Type()) {
		target := v.Field(f.index)
		if f.section {
			prefix := ""
			if env != "" {
				prefix = f.env(env) + "_"
			}
			l.section(nodes[f.name], target, path+f.name+".", prefix, source)
			delete(nodes, f.name)
			continue
		}
		given, ok := l.pick(f, nodes, path, env, source)
		delete(nodes, f.name)
		delete(nodes, f.name+fileSuffix)
		if !ok {
			if text := f.tag.Get("default"); text != "" {
				if err := setScalar(target, text); err != nil {
					panic("default of " + path + f.name + ": " + err.Error()) // a mistake in a tag
				}
			}
			continue
		}
		l.set(target, f, given, path+f.name)
		if replaced := f.tag.Get("replaced"); replaced != "" {
			l.warnings = append(l.warnings, &Problem{given.source, given.node.Line, given.key, errors.New("has no effect: " + replaced)})
		}
	}
	for name, node := range nodes {
		near := nearest(name, v.Type())
		if near != "" {
			near = path + near
		} else {
			near = elsewhere(name)
		}
		l.fail(source, node.Line, path+clip(name), unknown("key", near))
	}
}

// mapping returns the values of a section by key. Their lines are those of the keys.
func (l *loader) mapping(node *yaml.Node, path, source string) map[string]*yaml.Node {
	nodes := make(map[string]*yaml.Node)
	node = resolve(node)
	if node == nil {
		return nodes
	}
	path = strings.TrimSuffix(path, ".")
	if node.Kind != yaml.MappingNode {
		l.fail(source, node.Line, path, errors.New("a section with keys is wanted here"))
		return nodes
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], resolve(node.Content[i+1])
		if name.Kind != yaml.ScalarNode {
			l.fail(source, name.Line, path, errors.New("a key is a plain word"))
			continue
		}
		if _, ok := nodes[name.Value]; ok {
			l.fail(source, name.Line, strings.TrimPrefix(path+"."+clip(name.Value), "."), errors.New("given twice"))
			continue
		}
		if value == nil {
			value = &yaml.Node{}
		}
		located := *value
		located.Line = name.Line
		nodes[name.Value] = &located
	}
	return nodes
}

// resolve follows aliases; nil stands for nothing at all, which null is.
func resolve(node *yaml.Node) *yaml.Node {
	for range 8 {
		if node == nil || node.Kind != yaml.AliasNode {
			break
		}
		node = node.Alias
	}
	if node == nil || node.Kind == 0 || node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" {
		return nil
	}
	return node
}

// given is a value and where it comes from.
type given struct {
	node   *yaml.Node
	source string
	key    string // as it is given: with _file if it was read from one
}

// pick finds what sets a key: the environment goes before the file. Giving a key and its twin in one place is a mistake.
func (l *loader) pick(f field, nodes map[string]*yaml.Node, path, env, source string) (given, bool) {
	var plain, twin given
	if env != "" {
		name := f.env(env)
		plain = given{l.variable(name, f.typ), name, path + f.name}
		if f.file {
			name += strings.ToUpper(fileSuffix)
			twin = given{l.variable(name, f.typ), name, path + f.name + fileSuffix}
		}
	}
	if plain.node == nil && twin.node == nil {
		plain = given{resolve(nodes[f.name]), source, path + f.name}
		if f.file {
			twin = given{resolve(nodes[f.name+fileSuffix]), source, path + f.name + fileSuffix}
		}
	}
	switch {
	case twin.node == nil:
		return plain, plain.node != nil
	case plain.node != nil:
		l.fail(twin.source, twin.node.Line, twin.key, fmt.Errorf("given together with %s; one of them is enough", plain.key))
		return given{}, false
	case twin.node.Kind != yaml.ScalarNode:
		l.fail(twin.source, twin.node.Line, twin.key, errors.New("the name of a file is wanted here"))
		return given{}, false
	}
	text, err := readFile(twin.node.Value)
	if text = strings.TrimSpace(text); err == nil && text == "" {
		err = errors.New("is empty")
	}
	if err != nil {
		l.fail(twin.source, twin.node.Line, twin.key, fmt.Errorf("file %q %w", twin.node.Value, err))
		return given{}, false
	}
	twin.node = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: twin.node.Line}
	return twin, true
}

// variable returns the value of an environment variable, nil if it is not set. A list that begins with [ is YAML.
func (l *loader) variable(name string, typ reflect.Type) *yaml.Node {
	value, ok := l.env[name]
	if !ok {
		return nil
	}
	delete(l.env, name)
	if typ.Kind() == reflect.Slice && strings.HasPrefix(strings.TrimSpace(value), "[") {
		if root, _, err := parse(value); err == nil {
			clearLines(root)
			return root
		}
		l.fail(name, 0, "", errors.New("not a list in YAML"))
		return nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}
}

// clearLines removes line numbers, which say nothing in a variable.
func clearLines(node *yaml.Node) {
	node.Line = 0
	for _, n := range node.Content {
		clearLines(n)
	}
}

func unknown(what, near string) error {
	if near == "" {
		return errors.New("unknown " + what)
	}
	return fmt.Errorf("unknown %s; is %s meant?", what, near)
}

func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return strconv.Quote(s)
	}
	return s
}

// set sets the target from what was given for its key.
func (l *loader) set(target reflect.Value, f field, from given, path string) {
	fail := func(line int, key string, err error) { l.fail(from.source, line, key, err) }
	if target.Kind() != reflect.Slice {
		if err := setNode(target, from.node, f.tag); err != nil {
			fail(from.node.Line, path, err)
		}
		return
	}
	var elements []*yaml.Node
	switch {
	case from.node.Kind == yaml.SequenceNode:
		elements = from.node.Content
	case from.node.Kind == yaml.ScalarNode && !isSection(f.typ.Elem()):
		for element := range strings.SplitSeq(from.node.Value, ",") {
			elements = append(elements, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: strings.TrimSpace(element), Line: from.node.Line})
		}
	default:
		fail(from.node.Line, path, errors.New("a list is wanted here"))
		return
	}
	target.Set(reflect.MakeSlice(f.typ, len(elements), len(elements)))
	for i, element := range elements {
		key := fmt.Sprintf("%s[%d]", path, i)
		node := resolve(element)
		switch {
		case node == nil:
			fail(element.Line, key, errors.New("is empty"))
		case isSection(f.typ.Elem()):
			l.section(node, target.Index(i), key+".", "", from.source)
		default:
			if err := setNode(target.Index(i), node, ""); err != nil {
				fail(node.Line, key, err)
			} else if target.Index(i).IsZero() {
				fail(node.Line, key, errors.New("is empty"))
			}
		}
	}
}

func setNode(target reflect.Value, node *yaml.Node, tag reflect.StructTag) error {
	if node.Kind != yaml.ScalarNode {
		return errors.New("a single value is wanted here")
	}
	if err := setScalar(target, node.Value); err != nil {
		return err
	}
	return checkTag(target, tag)
}

// setScalar sets a value from its text. Errors do not repeat what may be a secret.
func setScalar(target reflect.Value, text string) error {
	switch target.Type() {
	case durationType:
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		target.SetInt(int64(d))
		return nil
	case prefixType:
		p, err := parsePrefix(text)
		if err != nil {
			return err
		}
		target.Set(reflect.ValueOf(p))
		return nil
	}
	if u, ok := target.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch target.Kind() {
	case reflect.String:
		target.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("true or false is wanted here")
		}
		target.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return errors.New("a whole number is wanted here")
		}
		target.SetInt(n)
	default:
		panic("no such kind of key: " + target.Type().String())
	}
	return nil
}

// parseDuration reads "1m30s", or a plain number of seconds.
func parseDuration(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(seconds) || math.Abs(seconds) >= math.MaxInt64/float64(time.Second) {
		return 0, errors.New("a duration is wanted here: 30s, 1m30s, or a number of seconds")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// parsePrefix reads a network, or an address as the network of that address alone.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return p, errors.New("an address or a network such as 198.18.0.0/24 is wanted here")
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if p != p.Masked() {
		return p, fmt.Errorf("the address of this network is %s", p.Masked())
	}
	return p, nil
}

// checkTag holds a value against its enum, min and max tags.
func checkTag(v reflect.Value, tag reflect.StructTag) error {
	if enum := tag.Get("enum"); enum != "" {
		for name := range strings.SplitSeq(enum, "|") {
			if v.String() == name {
				return nil
			}
		}
		return fmt.Errorf("one of %s is wanted here", strings.ReplaceAll(enum, "|", ", "))
	}
	if !v.CanInt() || v.Type() == reflect.TypeFor[Level]() {
		return nil
	}
	limit := reflect.New(v.Type()).Elem()
	if text := tag.Get("min"); text != "" {
		if err := setScalar(limit, text); err != nil {
			panic("min " + text + ": " + err.Error()) // a mistake in a tag
		}
	}
	if v.Int() < limit.Int() {
		return fmt.Errorf("at least %v is wanted here", limit)
	}
	if text := tag.Get("max"); text != "" {
		if err := setScalar(limit, text); err != nil {
			panic("max " + text + ": " + err.Error()) // a mistake in a tag
		}
		if v.Int() > limit.Int() {
			return fmt.Errorf("at most %v is wanted here", limit)
		}
	}
	return nil
}
