package file_test

import (
	"encoding/binary"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

// TestOneEventPerChange: Traefik reads all routes after each event in the directory, so that a change is not to be more
// than one.
func TestOneEventPerChange(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	require.NoError(t, err)
	defer syscall.Close(fd)
	// What Traefik's watcher asks for.
	_, err = syscall.InotifyAddWatch(fd, dir, syscall.IN_MOVED_TO|syscall.IN_MOVED_FROM|syscall.IN_CREATE|
		syscall.IN_ATTRIB|syscall.IN_MODIFY|syscall.IN_MOVE_SELF|syscall.IN_DELETE|syscall.IN_DELETE_SELF)
	require.NoError(t, err)
	events := func() (names []string) {
		buffer := make([]byte, 1<<16)
		n, err := syscall.Read(fd, buffer)
		if err == syscall.EAGAIN {
			return nil
		}
		require.NoError(t, err)
		for rest := buffer[:n]; len(rest) > 0; {
			length := binary.NativeEndian.Uint32(rest[12:])
			names = append(names, strings.TrimRight(string(rest[16:16+length]), "\x00"))
			rest = rest[16+length:]
		}
		return names
	}

	one := []string{"webspaced.ws-u1.yml"}
	require.NoError(t, p.Apply(t.Context(), put(route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"))))
	require.Equal(t, one, events())
	require.NoError(t, p.Apply(t.Context(), put(route(t, "ws-u1", "http://198.18.0.2:80", "a.example.org"))))
	require.Equal(t, one, events())
	require.NoError(t, p.Apply(t.Context(), put(route(t, "ws-u1", "http://198.18.0.2:80", "a.example.org"))))
	_, err = p.Routes(t.Context())
	require.NoError(t, err)
	require.Empty(t, events())
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}))
	require.Equal(t, one, events())
}
