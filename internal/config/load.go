package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Files are where [Load] looks when it is given no file, the first that exists.
func Files() []string {
	return []string{"webspaced.yaml", "/etc/webspaced/webspaced.yaml", "/run/config/webspaced.yaml"}
}

// maxFile bounds the configuration file and each file that a twin names.
const maxFile = 1 << 20

// Problem is a mistake in the configuration, or something to be warned of.
type Problem struct {
	Source string // the file, or the environment variable; empty if what is wrong is that nothing sets the key
	Line   int    // in the file; 0 if unknown
	Key    string // with its sections; empty if it is about the file as a whole
	Err    error
}

func (p *Problem) Error() string {
	var b strings.Builder
	if p.Source != "" {
		b.WriteString(p.Source)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	return b.String() + p.Err.Error()
}

func (p *Problem) Unwrap() error { return p.Err }

// Load reads the configuration from the YAML file at path, the environment, given as by [os.Environ], and the
// defaults. The environment goes before the file; a variable that is empty sets nothing. Without a path, the first of
// [Files] that exists is read; there may be none if the environment has any WSD_ variable.
//
// The error joins all mistakes, each a [*Problem]; no secret is in their text. Warnings are returned with and without
// an error.
func Load(path string, environ []string) (*Config, []*Problem, error) {
	l := loader{env: make(map[string]string)}
	for _, v := range environ {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, envPrefix) && value != "" {
			l.env[name] = value
		}
	}
	file, root := l.open(path)
	var c Config
	c.File = file
	l.section(root, reflect.ValueOf(&c).Elem(), "", envPrefix, file)
	for name := range l.env {
		l.fail(name, 0, "", unknown("variable", nearestEnv(name)))
	}
	if len(l.problems) == 0 {
		l.problems = c.check()
	}
	if len(l.problems) == 0 {
		return &c, l.warnings, nil
	}
	slices.SortStableFunc(l.problems, func(a, b *Problem) int {
		if d := strings.Compare(a.Source, b.Source); d != 0 {
			return d
		}
		return a.Line - b.Line
	})
	errs := make([]error, len(l.problems))
	for i, p := range l.problems {
		errs[i] = p
	}
	return nil, l.warnings, errors.Join(errs...)
}

type loader struct {
	env      map[string]string // what has not been used yet
	problems []*Problem
	warnings []*Problem
}

func (l *loader) fail(source string, line int, key string, err error) {
	l.problems = append(l.problems, &Problem{source, line, key, err})
}

// open returns the file's name and its root node, nil if there is none or it can not be read.
func (l *loader) open(path string) (string, *yaml.Node) {
	if path == "" {
		for _, f := range Files() {
			if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
				path = f
				break
			}
		}
	}
	if path == "" {
		if len(l.env) == 0 {
			l.fail("", 0, "", fmt.Errorf("no configuration: none of %s exists and no %s variable is set", strings.Join(Files(), ", "), envPrefix))
		}
		return "", nil
	}
	text, err := readFile(path)
	if err != nil {
		l.fail(path, 0, "", err)
		return path, nil
	}
	root, line, err := parse(text)
	if err != nil {
		l.fail(path, line, "", err)
	}
	return path, root
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("can not be read: %w", err.(*fs.PathError).Err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", errors.New("can not be read: not a file")
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("larger than %d bytes", maxFile)
	}
	return string(text), nil
}

var (
	yamlLine   = regexp.MustCompile(`^yaml: line (\d+): `)
	yamlQuoted = regexp.MustCompile(`'[^']*'|"[^"]*"` + "|`[^`]*`")
)

// parse returns the root of the only document in text, nil if it is empty. The parser counts lines from 1 in most of
// its messages; what it quotes is left out, because it may be a part of a secret.
func parse(text string) (root *yaml.Node, line int, err error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var document, more yaml.Node
	if err = decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, 0, nil
	}
	if err == nil {
		if err = decoder.Decode(&more); errors.Is(err, io.EOF) {
			return document.Content[0], 0, nil
		}
		if err == nil {
			return nil, more.Line, errors.New("more than one YAML document")
		}
	}
	message := err.Error()
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = message[len(m[0]):]
	}
	message = yamlQuoted.ReplaceAllString(strings.TrimPrefix(message, "yaml: "), "(...)")
	return nil, line, errors.New("not YAML: " + message)
}
