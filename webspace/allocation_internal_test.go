package webspace

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
)

// Whatever is reserved, recorded and released: a port has one holder, and each that has none can be had.
func TestPortAllocation(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 12))
		ops := make([]byte, random.IntN(300))
		for i := range ops {
			ops[i] = byte(random.Uint32())
		}
		allocate(t, ops)
	}
}

func FuzzPortAllocation(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 8, 3, 4, 1, 2})
	f.Add([]byte("reserve all of it and then some more of it"))
	f.Fuzz(allocate)
}

func allocate(t *testing.T, ops []byte) {
	const first, last = 100, 107
	type reservation struct {
		port    int
		release func()
	}
	var (
		x        = newIndex()
		reserved []reservation
		recorded = map[int]identity.UserID{}
	)
	taken := func(port int) bool {
		_, ok := recorded[port]
		return ok || slices.ContainsFunc(reserved, func(r reservation) bool { return r.port == port })
	}
	write := func(user identity.UserID) {
		ports := map[int]int{}
		for port, owner := range recorded {
			if owner == user {
				ports[port] = 22
			}
		}
		_, ok := x.update(instanceName("ws-", user), user, x.now(), func(v *view) { v.record.Ports = ports })
		require.True(t, ok)
	}
	reserve := func(from, to int, free bool) {
		port, release, ok := x.reservePort(from, to)
		require.Equal(t, free, ok, "ports %d to %d", from, to)
		if !ok {
			return
		}
		require.True(t, from <= port && port <= to, "port %d is not from %d to %d", port, from, to)
		require.False(t, taken(port), "port %d has two holders", port)
		reserved = append(reserved, reservation{port, release})
	}
	for _, op := range ops {
		n := int(op / 5)
		port := first + n%(last-first+1)
		switch {
		case op%5 == 0:
			reserve(first, last, len(reserved)+len(recorded) <= last-first)
		case op%5 == 1:
			reserve(port, port, !taken(port))
		case op%5 == 2 && len(reserved) > 0: // the write failed
			reserved[0].release()
			reserved = reserved[1:]
		case op%5 == 3 && len(reserved) > 0:
			user := identity.UserID(n % 3)
			recorded[reserved[0].port] = user
			write(user)
			reserved[0].release()
			reserved = reserved[1:]
		case op%5 == 4:
			if user, ok := recorded[port]; ok {
				delete(recorded, port)
				write(user)
			}
		}
	}
	for _, r := range reserved {
		r.release()
	}
	reserved = nil
	for range last - first + 1 - len(recorded) {
		reserve(first, last, true)
	}
	reserve(first, last, false)
}

// Each free port is as likely as any other, wherever the taken ones lie.
func TestPortsAreUniform(t *testing.T) {
	const first, last, draws = 100, 123, 16000
	x := newIndex()
	_, _ = x.update("ws-u1", 1, x.now(), func(v *view) {
		v.record.Ports = map[int]int{100: 1, 101: 1, 102: 1, 103: 1, 110: 1, 112: 1, 122: 1, 123: 1}
	})
	counts := map[int]int{}
	for range draws {
		port, release, ok := x.reservePort(first, last)
		require.True(t, ok)
		release()
		counts[port]++
	}
	const free = 16
	require.Len(t, counts, free)
	chi := 0.0
	for _, n := range counts {
		d := float64(n) - draws/free
		chi += d * d / (draws / free)
	}
	// Of 15 degrees of freedom, once in more than a thousand million runs by chance. The first free port of each draw, or
	// the next after a random one, would give thousands.
	require.Less(t, chi, 75.0)
}
