package lxd_test

import (
	"bytes"
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// onEngine runs a test on LXD, and on Incus.
func onEngine(t *testing.T, test func(*testing.T, *testbed.Engine)) {
	t.Run("lxd", func(t *testing.T) { test(t, testbed.LXD(t)) })
	t.Run("incus", func(t *testing.T) { test(t, testbed.Incus(t)) })
}

// connect returns a runtime on the engine's unix socket, with changes to its options.
func connect(t *testing.T, e *testbed.Engine, change func(*lxd.Options)) *lxd.Runtime {
	t.Helper()
	opts := lxd.Options{Socket: e.Socket, Profile: e.Profile, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&opts)
	}
	r, err := lxd.Connect(t.Context(), &opts)
	require.NoError(t, err)
	return r
}

func TestSuite(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		hello := testbed.Hello()
		hello.Files = map[string]string{"bin/printenv": "#!/bin/sh\nenv | sed -n \"s/^$1=//p\"\n"}
		e.ImportImage(t, "suite", hello)
		runtimetest.Run(t, runtimetest.Harness{
			New:     func(t *testing.T) webspace.Runtime { return connect(t, e, nil) },
			Image:   "suite",
			Prefix:  "rt-" + e.Name + "-",
			Watcher: true, Imager: true, Execer: true, Consoler: true, Logger: true,
			Listens: true,
			Prints:  true,
			Users:   true,
		})
	})
}

// create makes an instance that is deleted at the end.
func create(t *testing.T, e *testbed.Engine, r *lxd.Runtime, name, image string) {
	t.Helper()
	t.Cleanup(func() { e.Delete(t, name) })
	require.NoError(t, r.Create(t.Context(), name, webspace.CreateOptions{Image: image, Record: []byte("0")}))
}

// shell runs a script in an instance and returns what it prints.
func shell(t *testing.T, r *lxd.Runtime, name, script string) string {
	t.Helper()
	var out bytes.Buffer
	_, err := r.Exec(t.Context(), name, webspace.ExecOptions{Command: []string{"/bin/sh", "-c", script}, Stdout: &out})
	require.NoError(t, err)
	return out.String()
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}
