package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// WriteTo writes the effective configuration in YAML, with secrets hidden.
func (c *Config) WriteTo(w io.Writer) (int64, error) {
	text, err := yaml.Marshal(c)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(text)
	return int64(n), err
}

// Sample returns a configuration file with every key, what it means and its default. All but what has to be decided is
// commented out.
func Sample() string {
	var b strings.Builder
	b.WriteString(`# Configuration of webspaced. What is commented out shows the default, or an example, marked so, where there is none.
#
# The file is looked for as webspaced.yaml in the working directory, /etc/webspaced/webspaced.yaml and
# /run/config/webspaced.yaml; --config names another one. Every key can also be set by an environment variable: WSD_ and
# the key with its sections in upper case, such as WSD_HTTP_LISTEN_ADDRESS. A key with a twin NAME_file is read from the
# file that the twin names.
`)
	writeSection(&b, reflect.TypeFor[Config](), "")
	return b.String()
}

func writeSection(b *strings.Builder, t reflect.Type, indent string) {
	for _, f := range fieldsOf(t) {
		if f.section || indent == "" {
			b.WriteByte('\n')
		}
		writeDoc(b, f, indent)
		switch {
		case f.section:
			fmt.Fprintf(b, "%s%s:\n", indent, f.name)
			writeSection(b, f.typ, indent+"  ")
		case f.typ.Kind() == reflect.Slice && isSection(f.typ.Elem()):
			writeElement(b, f, indent)
		default:
			b.WriteString(indent + sampleLine(f) + "\n")
		}
	}
}

// writeElement writes a list of one element. It is commented out if nothing in it has to be decided.
func writeElement(b *strings.Builder, list field, indent string) {
	fields := fieldsOf(list.typ.Elem())
	comment := "#"
	for _, f := range fields {
		if f.tag.Get("sample") != "" {
			comment = ""
		}
	}
	fmt.Fprintf(b, "%s%s%s:\n", indent, comment, list.name)
	bullet := "- "
	for _, f := range fields {
		writeDoc(b, f, indent+"    ")
		line := sampleLine(f)
		if comment != "" {
			line = strings.TrimPrefix(line, "#")
		}
		if strings.HasPrefix(line, "#") {
			fmt.Fprintf(b, "%s    %s\n", indent, line)
		} else {
			fmt.Fprintf(b, "%s%s  %s%s\n", indent, comment, bullet, line)
			bullet = "  "
		}
	}
}

func sampleLine(f field) string {
	line := f.name
	if f.file {
		line += fileSuffix
	}
	if value := f.tag.Get("sample"); value != "" {
		return line + ": " + value
	}
	if value := f.tag.Get("default"); value != "" {
		return "#" + line + ": " + value
	}
	return "#" + line + ": " + f.tag.Get("example") + "  # example"
}

// writeDoc writes what a key means as comments of at most 110 columns.
func writeDoc(b *strings.Builder, f field, indent string) {
	doc := f.tag.Get("doc")
	if f.file {
		doc += fmt.Sprintf(" Either %s, or %s.", f.name, f.name+fileSuffix)
	}
	line := ""
	for word := range strings.FieldsSeq(doc) {
		if line != "" && len(indent)+len(line)+len(word) > 106 {
			fmt.Fprintf(b, "%s# %s\n", indent, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	fmt.Fprintf(b, "%s# %s\n", indent, line)
}
