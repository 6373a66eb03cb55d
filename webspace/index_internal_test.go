package webspace

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
)

func claim(hosts ...string) func(*view) {
	return func(v *view) { v.known, v.hosts = true, hosts }
}

func (x *index) put(user identity.UserID, hosts ...string) (affected []string) {
	affected, _ = x.update(instanceName("ws-", user), user, x.now(), claim(hosts...))
	return affected
}

func TestHostsHaveOneOwner(t *testing.T) {
	x := newIndex()
	require.Empty(t, x.put(5, "a", "b"))
	require.Empty(t, x.put(5, "a", "b"), "nobody else is concerned")
	require.Equal(t, []string{"ws-u5"}, x.put(9, "a", "c"), "who loses is told, though here it is the newcomer")
	require.Equal(t, "ws-u5", x.ownerOf("a").name)
	require.Equal(t, []string{"ws-u5"}, x.put(3, "a"))
	require.Equal(t, "ws-u3", x.ownerOf("a").name)
	has, lost := x.owned(x.find("ws-u5"))
	require.Equal(t, []string{"b"}, has)
	require.Equal(t, []string{"a"}, lost)

	require.Equal(t, []string{"ws-u5"}, x.put(3), "who wins is told")
	require.Equal(t, "ws-u5", x.ownerOf("a").name)
	affected, ok := x.remove("ws-u5", x.now())
	require.True(t, ok)
	require.Equal(t, []string{"ws-u9"}, affected)
	require.Equal(t, "ws-u9", x.ownerOf("a").name)
	require.Nil(t, x.ownerOf("b"))
	_, _ = x.remove("ws-u9", x.now())
	_, _ = x.remove("ws-u3", x.now())
	require.Empty(t, x.hosts)
	require.Empty(t, x.entries)
}

func TestStaleReadings(t *testing.T) {
	x := newIndex()
	before := x.now()
	x.put(1, "new")
	_, ok := x.update("ws-u1", 1, before, claim("old"))
	require.False(t, ok)
	require.Equal(t, "ws-u1", x.ownerOf("new").name)
	_, ok = x.remove("ws-u1", before)
	require.False(t, ok)

	require.False(t, x.stale("ws-u1"))
	require.True(t, x.stale("ws-u2"), "not known")
	x.touch("ws-u1")
	require.True(t, x.stale("ws-u1"))
	since := x.now()
	x.touch("ws-u1") // while it is being read
	_, ok = x.update("ws-u1", 1, since, claim("new"))
	require.True(t, ok)
	require.True(t, x.stale("ws-u1"))
	x.put(1, "new")
	require.False(t, x.stale("ws-u1"))

	since = x.now()
	x.touch("ws-u2") // made while all are being listed
	_, ok = x.update("ws-u2", 2, since, claim("two"))
	require.True(t, ok)
	require.True(t, x.stale("ws-u2"))

	since = x.now()
	_, ok = x.remove("ws-u2", since)
	require.True(t, ok)
	_, ok = x.update("ws-u2", 2, since, claim("two"))
	require.False(t, ok, "what was read before it was removed would bring it back")
}

func TestReservations(t *testing.T) {
	x := newIndex()
	x.put(1, "a")
	_, ok := x.reserveHost("a", "ws-u2")
	require.False(t, ok)
	release, ok := x.reserveHost("a", "ws-u1")
	require.True(t, ok)
	_, ok = x.reserveHost("a", "ws-u1")
	require.False(t, ok)
	release()
	_, ok = x.reserveHost("a", "ws-u1")
	require.True(t, ok)

	_, _ = x.update("ws-u1", 1, x.now(), func(v *view) { v.record.Ports = map[int]int{7: 1, 8: 1} })
	port, release, ok := x.reservePort(7, 9)
	require.True(t, ok)
	require.Equal(t, 9, port)
	_, _, ok = x.reservePort(7, 9)
	require.False(t, ok)
	release()
	_, _, ok = x.reservePort(9, 9)
	require.True(t, ok)
	_, _ = x.update("ws-u1", 1, x.now(), func(v *view) { v.record.Ports = map[int]int{8: 1} })
	_, _, ok = x.reservePort(7, 7)
	require.True(t, ok)
}

// The index agrees with a plain model, whatever is done to it at the same time.
func TestIndexUnderConcurrency(t *testing.T) {
	x := newIndex()
	var wg sync.WaitGroup
	for user := range identity.UserID(8) {
		wg.Go(func() {
			name := instanceName("ws-", user)
			for n := range 300 {
				host := func(k int) string { return fmt.Sprint("h", (int(user)+n*k)%5) }
				if n%7 == 0 {
					_, _ = x.remove(name, x.now())
				} else {
					hosts := []string{host(1), host(3)}
					slices.Sort(hosts)
					x.put(user, slices.Compact(hosts)...)
				}
				x.touch(name)
				x.adjust(name, func(v *view) { v.status, v.address = StatusRunning, netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) })
				if e := x.ownerOf(host(2)); e != nil {
					_, _ = x.owned(e)
					_ = x.look(e)
				}
				_ = x.all()
			}
		})
	}
	wg.Wait()
	owners := map[string]identity.UserID{}
	for _, e := range x.all() {
		for _, host := range e.hosts {
			if owner, ok := owners[host]; !ok || e.user < owner {
				owners[host] = e.user
			}
		}
	}
	require.Len(t, x.hosts, len(owners))
	for host, owner := range owners {
		require.Equal(t, owner, x.ownerOf(host).user)
	}
}
