package file_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
)

func open(t *testing.T, dir string) *file.Provider {
	t.Helper()
	p, err := file.New(dir, nil)
	require.NoError(t, err)
	return p
}

// requireFailed requires that the route named ws-u1, and no other, failed with an error of a class.
func requireFailed(t *testing.T, err error, class func(error) bool) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	require.Truef(t, ok, "%v", err)
	require.Len(t, joined.Unwrap(), 1)
	failed, ok := errors.AsType[*provider.RouteError](err)
	require.True(t, ok)
	require.Equal(t, "ws-u1", failed.Route)
	require.Truef(t, class(err), "%v", err)
}

func TestOtherThingsInPlaceOfFiles(t *testing.T) {
	for name, make := range map[string]func(name, elsewhere string) error{
		"directory":       func(name, _ string) error { return os.Mkdir(name, 0o755) },
		"symbolic link":   func(name, elsewhere string) error { return os.Symlink(elsewhere, name) },
		"dangling link":   func(name, _ string) error { return os.Symlink("nowhere", name) },
		"named pipe":      func(name, _ string) error { return syscall.Mkfifo(name, 0o644) },
		"somebody's file": func(name, _ string) error { return os.WriteFile(name, []byte("http: {}\n"), 0o644) },
		"another's routing": func(name, _ string) error {
			return os.WriteFile(name, []byte("# A route of the webspaced deployment web.\n"), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
			p := open(t, dir)
			a, b := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"), route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
			// What a link leads to bears our mark, even.
			require.NoError(t, p.Apply(t.Context(), put(a)))
			require.NoError(t, os.Rename(filepath.Join(dir, "webspaced.ws-u1.yml"), elsewhere))
			before, err := os.ReadFile(elsewhere)
			require.NoError(t, err)

			place := filepath.Join(dir, "webspaced.ws-u1.yml")
			require.NoError(t, make(place, elsewhere))
			info, err := os.Lstat(place)
			require.NoError(t, err)

			requireFailed(t, p.Apply(t.Context(), put(a, b)), errdefs.IsAlreadyExists)
			routes, err := p.Routes(t.Context())
			require.NoError(t, err)
			require.Equal(t, []provider.Route{b}, routes)
			require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1", "ws-u2"}}))

			now, err := os.Lstat(place)
			require.NoError(t, err)
			require.True(t, os.SameFile(info, now))
			after, err := os.ReadFile(elsewhere)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}

func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	p := open(t, dir)
	require.NoError(t, os.Chmod(filepath.Join(dir, ".webspaced"), 0o777))
	a, b := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"), route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	require.NoError(t, os.Chmod(filepath.Join(dir, "webspaced.ws-u1.yml"), 0))
	asNobody(t)

	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []provider.Route{{Name: "ws-u1"}}, routes)
	requireFailed(t, p.Apply(t.Context(), put(a, b)), errdefs.IsPermissionDenied)
	requireFailed(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}), errdefs.IsPermissionDenied)
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	require.NoError(t, os.Chmod(dir, 0o555))
	require.NoError(t, os.Chmod(filepath.Join(dir, ".webspaced"), 0o555))
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	asNobody(t)

	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []provider.Route{a}, routes)
	require.NoError(t, p.Apply(t.Context(), put(a)), "nothing is to be written")
	requireFailed(t, p.Apply(t.Context(), put(route(t, "ws-u1", "http://198.18.0.9:80", "a.example.org"))), errdefs.IsPermissionDenied)
	requireFailed(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}), errdefs.IsPermissionDenied)
	_, err = file.New(dir, &file.Options{Deployment: "other"})
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
}

// asNobody makes the rest of the test run without root's power over files.
func asNobody(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	// The test's directories are below one that only root may enter.
	for dir := filepath.Dir(t.TempDir()); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	require.NoError(t, syscall.Seteuid(65534))
	t.Cleanup(func() { require.NoError(t, syscall.Seteuid(0)) })
}

func TestDirectoryVanishesAndComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "routes")
	require.NoError(t, os.Mkdir(dir, 0o755))
	p := open(t, dir)
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))

	require.NoError(t, os.RemoveAll(dir))
	_, err := p.Routes(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.True(t, errdefs.IsUnavailable(p.Apply(t.Context(), put(a))))
	require.NoDirExists(t, dir, "an unmounted volume is not to be made up for")

	require.NoError(t, os.Mkdir(dir, 0o755))
	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Empty(t, routes)
	require.NoError(t, p.Apply(t.Context(), put(a)))
	routes, err = p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []provider.Route{a}, routes)
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mount a tmpfs: ", err)
		}
		t.Skip("left out: needs root to mount a small file system: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })

	p := open(t, dir)
	small := route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	old := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(old, small)))
	big := provider.Route{Name: old.Name, Backend: old.Backend}
	for i := range 500 {
		big.Hosts = append(big.Hosts, route(t, "x", "http://127.0.0.1:1", fmt.Sprintf("h%03d.example.org", i)).Hosts...)
	}
	for range 3 { // room is given back each time
		requireFailed(t, p.Apply(t.Context(), put(big, small)), errdefs.IsUnavailable)
	}
	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Equal(t, []provider.Route{old, small}, routes, "the old file stands")
	left, err := os.ReadDir(filepath.Join(dir, ".webspaced"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestCrashLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	stage := filepath.Join(dir, ".webspaced")
	require.NoError(t, os.Mkdir(stage, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(stage, "ws-u1.QX4E"), []byte("http: {rou"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".other"), nil, 0o600))
	p := open(t, dir)
	left, err := os.ReadDir(stage)
	require.NoError(t, err)
	require.Empty(t, left)
	require.FileExists(t, filepath.Join(dir, ".other"))
	info, err := os.Stat(stage)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), info.Mode().Perm(), "Traefik may be another user")
	routes, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Empty(t, routes)
}

func TestFilesAreReadable(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	require.NoError(t, open(t, dir).Apply(t.Context(), put(route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"))))
	for name, mode := range map[string]os.FileMode{".webspaced": 0o755, "webspaced.ws-u1.yml": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
}

func TestUnchangedIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	name := filepath.Join(dir, "webspaced.ws-u1.yml")
	before, err := os.Stat(name)
	require.NoError(t, err)
	require.NoError(t, os.Chtimes(name, time.Time{}, before.ModTime().Add(-time.Hour)))
	require.NoError(t, p.Apply(t.Context(), put(a)))
	after, err := os.Stat(name)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	require.Equal(t, before.ModTime().Add(-time.Hour), after.ModTime())
}

// TestPrivateKeys: files with a key are for the directory's group alone, all others for everybody.
func TestPrivateKeys(t *testing.T) {
	dir := t.TempDir()
	group := os.Getegid()
	if os.Geteuid() == 0 {
		group = 4321
		require.NoError(t, os.Chown(dir, -1, group))
	}
	p, err := file.New(dir, &file.Options{HTTPSEntryPoint: "websecure"})
	require.NoError(t, err)
	plain := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	resolver, secret := plain, route(t, "ws-u2", "http://198.18.0.1:80", "b.example.org")
	resolver.Certificates = []provider.Certificate{{Host: plain.Hosts[0], Resolver: "le"}}
	secret.Certificates = []provider.Certificate{{Host: secret.Hosts[0], Chain: "-----BEGIN A", Key: "-----BEGIN B"}}
	requireMode := func(name string, mode os.FileMode) {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, "webspaced."+name+".yml"))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode())
		if mode == 0o640 {
			require.EqualValues(t, group, info.Sys().(*syscall.Stat_t).Gid)
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	for _, r := range []provider.Route{plain, resolver} {
		require.NoError(t, p.Apply(t.Context(), put(r, secret)))
		requireMode("ws-u1", 0o644)
		requireMode("ws-u2", 0o640)
	}
	without := secret
	without.Certificates = nil
	require.NoError(t, p.Apply(t.Context(), put(without)))
	requireMode("ws-u2", 0o644)
	require.NoError(t, p.Apply(t.Context(), put(secret)))
	requireMode("ws-u2", 0o640)
}
