// Package webspaced_test checks what holds for the repository as a whole: which way imports point, what the core may
// pull in, and that what has to be written down is.
package webspaced_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/netsoc/webspaced"

// below says which of our packages each may import besides what is nested in itself. What is nested in one of them,
// such as a backend, may import what it may, and itself: never another backend. cmd, examples and internal may import
// anything, since nobody imports them.
var below = map[string][]string{
	"identity":    {},
	"provider":    {},
	"tlsprovider": {"provider"},
	"proxy":       {},
	"webspace":    {"identity", "provider", "tlsprovider", "proxy"},
	"openapi":     {"webspace", "identity", "provider", "tlsprovider", "proxy"},
	"metrics":     {"webspace", "identity", "provider", "tlsprovider", "proxy"},
}

// core packages pull in none of these modules, so that who embeds one pays only for the backends that they choose.
var (
	core    = []string{"webspace", "provider", "tlsprovider", "identity", "proxy"}
	backend = regexp.MustCompile(`(^|[./])k8s\.io/|^github\.com/(lxc|canonical)/|redis|traefik|cert-manager|prometheus`)
)

func TestImportsPointDownwards(t *testing.T) {
	for from, imports := range packages(t) {
		for _, to := range imports {
			if !permitted(from, to) {
				t.Errorf("%s imports %s: not allowed by the table of this test", from, to)
			}
		}
	}
}

func permitted(from, to string) bool {
	top, _, nested := strings.Cut(from, "/")
	switch top {
	case "cmd", "examples":
		return !strings.HasPrefix(to, "cmd/")
	case "internal":
		return !strings.HasPrefix(to, "cmd/") && !strings.HasPrefix(to, "examples/")
	}
	if nested && to == top || strings.HasPrefix(to, top+"/internal/") {
		return true
	}
	return slices.Contains(below[top], to)
}

func TestPermitted(t *testing.T) {
	for _, test := range []struct {
		from, to string
		want     bool
	}{
		{"webspace", "provider", true},
		{"webspace/lxd", "webspace", true},
		{"provider/file", "provider/internal/traefik", true},
		{"openapi", "openapi/internal/access", true},
		{"webspace", "openapi/internal/access", false},
		{"cmd/webspaced", "webspace/lxd", true},
		{"provider", "webspace", false},
		{"proxy", "webspace", false},
		{"webspace", "webspace/lxd", false},
		{"webspace", "provider/file", false},
		{"webspace/lxd", "webspace/local", false},
		{"webspace/lxd", "provider/file", false},
		{"webspace", "webspace/runtimetest", false},
		{"webspace", "internal/config", false},
		{"internal/config", "cmd/webspaced", false},
		{"unheardof", "webspace", false},
	} {
		require.Equal(t, test.want, permitted(test.from, test.to), "%s -> %s", test.from, test.to)
	}
}

func TestCoreStaysSmall(t *testing.T) {
	all := packages(t)
	for _, name := range core {
		require.Contains(t, all, name, "a core package is missing")
		for _, dependency := range strings.Fields(goTool(t, "list", "-deps", "./"+name)) {
			require.False(t, backend.MatchString(dependency), "%s pulls in %s", name, dependency)
			if name == "proxy" && dependency != module+"/proxy" {
				require.False(t, strings.HasPrefix(dependency, module+"/"), "proxy pulls in %s", dependency)
			}
		}
	}
}

// A rule that is put together anywhere but in the one package that escapes what goes into it can be broken out of.
func TestTraefikRulesAreBuiltInOnePlace(t *testing.T) {
	rule := regexp.MustCompile("\\b(Host|HostSNI|HostRegexp|HostSNIRegexp|Path|PathPrefix|PathRegexp|Header|Headers|HeadersRegexp|HeaderRegexp|Method|Query|QueryRegexp|ClientIP|ALPN)\\([`\"']")
	goFiles(t, func(path string, file *ast.File) {
		if strings.HasPrefix(path, "provider/internal/traefik/") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				// The literal's own opening quote is no part of a rule.
				if rule.MatchString(literal.Value[1:]) {
					t.Errorf("%s has a Traefik rule in it: %s", path, literal.Value)
				}
			}
			return true
		})
	})
}

// A new dependency is a decision, and has its reason written down.
func TestDependenciesHaveReasons(t *testing.T) {
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	require.NoError(t, json.Unmarshal([]byte(goTool(t, "mod", "edit", "-json")), &mod))
	text, err := os.ReadFile("CONTRIBUTING.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## Dependencies\n")
	require.True(t, found, "CONTRIBUTING.md has no section Dependencies")
	section, _, _ = strings.Cut(section, "\n## ")

	var listed []string
	for _, match := range regexp.MustCompile("(?m)^- `([^`]+)`: \\S").FindAllStringSubmatch(section, -1) {
		listed = append(listed, match[1])
	}
	var required []string
	for _, r := range mod.Require {
		required = append(required, r.Path)
		if !r.Indirect {
			require.Contains(t, listed, r.Path, "CONTRIBUTING.md does not say why we depend on it")
		}
	}
	require.Subset(t, required, listed, "CONTRIBUTING.md lists what go.mod does not require")
}

// packages maps our packages to those of ours that they import, tests not counted.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(goTool(t, "list", "-e", "-json=ImportPath,Imports", "./...")))
	all := map[string][]string{}
	for decoder.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		require.NoError(t, decoder.Decode(&p))
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		all[name] = nil
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module+"/"); ok {
				all[name] = append(all[name], ours)
			}
		}
	}
	return all
}

// goFiles calls f for each Go file of the repository that is no test.
func goFiles(t *testing.T, f func(path string, file *ast.File)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(path), file)
		return nil
	}))
}

func goTool(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go %s", strings.Join(args, " "))
	return string(out)
}
