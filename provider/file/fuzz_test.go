package file_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
)

// FuzzStored has any bytes where a route's file is: they are somebody else's, and stay, or ours. Those are exactly what
// is written for the route that they are read as, or that one has nothing but its name, and is written anew.
func FuzzStored(f *testing.F) {
	const mark = "# A route of the webspaced deployment one. Changes made by hand are overwritten.\n"
	f.Add(false, []byte(nil))
	f.Add(false, []byte(mark[:20]))
	f.Add(false, []byte("http: {routers: {theirs: }}\n"))
	f.Add(true, []byte("\t{{ nonsense"))
	f.Add(true, []byte("a: &a [*a, *a]\nhttp: {routers: *a}\n"))
	f.Add(true, []byte("http: {routers: {? [x] : {rule: 1}}}\n"))
	for _, null := range nulls {
		f.Add(true, []byte(null))
	}
	dir := f.TempDir()
	p, err := file.New(dir, &file.Options{Deployment: "one"})
	require.NoError(f, err)
	name := filepath.Join(dir, "one.ws-u1.yml")
	for _, backend := range []string{"http://198.18.0.1:80", "tcp://198.18.0.1:443"} {
		require.NoError(f, p.Apply(f.Context(), put(route(f, "ws-u1", backend, "a.example.org", "b.example.org"))))
		content, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(false, content)
	}
	f.Fuzz(func(t *testing.T, marked bool, content []byte) {
		if marked {
			content = append([]byte(mark), content...)
		}
		dir := t.TempDir()
		name := filepath.Join(dir, "one.ws-u1.yml")
		require.NoError(t, os.WriteFile(name, content, 0o644))
		p, err := file.New(dir, &file.Options{Deployment: "one"})
		require.NoError(t, err)
		routes, err := p.Routes(t.Context())
		require.NoError(t, err)
		want := route(t, "ws-u1", "http://198.18.0.2:80", "c.example.org")
		if !bytes.HasPrefix(content, []byte(mark)) && !bytes.HasPrefix([]byte(mark), content) {
			require.Empty(t, routes)
			err := p.Apply(t.Context(), put(want))
			require.Truef(t, errdefs.IsAlreadyExists(err), "%v", err)
			left, err := os.ReadFile(name)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, left))
			return
		}
		require.Len(t, routes, 1)
		have := routes[0]
		require.Equal(t, "ws-u1", have.Name)
		if have.Backend == "" {
			require.Empty(t, have.Hosts)
		} else {
			require.NoError(t, have.Validate())
			require.NoError(t, os.Remove(name))
			require.NoError(t, p.Apply(t.Context(), put(have)))
			written, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, string(content), string(written))
		}
		require.NoError(t, p.Apply(t.Context(), put(want)))
		routes, err = p.Routes(t.Context())
		require.NoError(t, err)
		require.Equal(t, []provider.Route{want}, routes)
	})
}
