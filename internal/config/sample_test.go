package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/internal/config"
)

const (
	sampleFile  = "../../deploy/webspaced.yaml"
	minimalFile = "../../deploy/minimal.yaml"
)

// TestSample holds the sample file against the keys. With -update it writes the file.
func TestSample(t *testing.T) {
	if *update {
		require.NoError(t, os.WriteFile(sampleFile, []byte(config.Sample()), 0o644))
	}
	text, err := os.ReadFile(sampleFile)
	require.NoError(t, err)
	require.Equal(t, config.Sample(), string(text), "run go generate in internal/config")

	c := loadShipped(t, sampleFile)
	require.Equal(t, "alice", c.Identity.Static.Users[0].Username)

	// With every key uncommented the file is still YAML, each key is known and no key is missing.
	whole := regexp.MustCompile(`(?m)^( *)#(( {2}- | {4})?[a-z_]+:)`).ReplaceAllString(string(text), "$1$2")
	var tree map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(whole), &tree))
	got := paths(tree, "")
	var want []string
	for _, k := range config.Keys() {
		if k.File {
			k.Name += "_file"
		}
		want = append(want, k.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	require.Equal(t, want, got)
	_, _, err = config.Load(write(t, "whole.yaml", whole), nil)
	require.NotContains(t, err.Error(), "unknown key")
	require.NotContains(t, err.Error(), "wanted here")
}

func TestMinimal(t *testing.T) {
	text, err := os.ReadFile(minimalFile)
	require.NoError(t, err)
	require.LessOrEqual(t, strings.Count(string(text), "\n"), 10)
	c := loadShipped(t, minimalFile)
	require.Equal(t, "lxd", c.Runtime)
}

// TestSamples loads the configurations for the usual kinds of installations.
func TestSamples(t *testing.T) {
	for name, issuer := range map[string]string{"redis": "resolver", "file": "acme", "acme": "acme", "kubernetes/webspaced": "certmanager"} {
		c := loadShipped(t, "../../deploy/"+name+".yaml")
		require.Equal(t, issuer, c.TLS.Provider, name)
		require.NotEmpty(t, c.Gateway.TLSListenAddress, name)
	}
}

// What the README shows is what an operator copies.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^ *```yaml\n(.*?)^ *```").FindAllStringSubmatch(string(text), -1)
	require.Len(t, blocks, 4)
	first := dedent(blocks[0][1])
	require.LessOrEqual(t, strings.Count(first, "\n"), 10)
	for _, block := range blocks {
		dir := t.TempDir()
		for _, name := range []string{"alice.token", "iam.token"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
		}
		part := strings.ReplaceAll(dedent(block[1]), "/etc/webspaced", dir)
		part = strings.ReplaceAll(part, "token_file: alice.token", "token_file: "+dir+"/alice.token")
		if !strings.Contains(part, "domain:") {
			part += "webspaces: {domain: example.org}\n"
		}
		if !strings.Contains(part, "identity:") && !strings.Contains(part, "iam:") {
			part += "identity: {static: {users: [{id: 1, username: a, token: t}]}}\n"
		}
		load(t, part)
	}
}

// dedent takes the indentation of the first line off all.
func dedent(text string) string {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	return strings.ReplaceAll("\n"+text, "\n"+indent, "\n")[1:]
}

// loadShipped loads a file with the secrets it names in a directory of the test's own.
func loadShipped(t *testing.T, file string) *config.Config {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	dir := t.TempDir()
	for _, name := range []string{"admin.token", "alice.token", "lxd-server.crt", "lxd-client.crt", "lxd-client.key"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	return load(t, strings.ReplaceAll(string(text), "/etc/webspaced", dir))
}

// paths lists the keys of a tree as config.Keys names them.
func paths(tree map[string]any, prefix string) []string {
	var names []string
	for name, value := range tree {
		if section, ok := value.(map[string]any); ok {
			names = append(names, paths(section, prefix+name+".")...)
		} else {
			names = append(names, prefix+name)
		}
	}
	return names
}
