package lxd_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
)

// TestForeignAddresses has root in a guest take addresses of others, in any order.
func TestForeignAddresses(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, func(o *lxd.Options) { o.TrustedPrefixes = []netip.Prefix{e.Subnet} })
		name := "foreign-" + e.Name
		create(t, e, r, name, e.Image)
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		pinned := i.Address
		require.True(t, e.Subnet.Contains(pinned) && pinned != e.Gateway, pinned)
		require.NoError(t, r.Start(t.Context(), name))
		require.Equal(t, pinned, e.Address(t, name), "the guest gets the pinned address by DHCP")

		foreign := []string{"10.96.0.1", "8.8.8.8", e.Gateway.String(), pinned.Next().String(), "127.0.0.5"}
		rand.Shuffle(len(foreign), func(a, b int) { foreign[a], foreign[b] = foreign[b], foreign[a] })
		check := func() {
			t.Helper()
			i, err := r.Get(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, pinned, i.Address)
			list, err := r.List(t.Context(), name)
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.Equal(t, pinned, list[0].Address)
		}
		for _, address := range foreign {
			shell(t, r, name, "ip addr add "+address+"/24 dev eth0")
			check()
		}
		shell(t, r, name, fmt.Sprintf("ip addr del %s/22 dev eth0", pinned))
		check()
		require.Equal(t, 5, strings.Count(shell(t, r, name, "ip -4 addr show dev eth0"), "inet "))
	})
}

// TestUnpinned reads the address of an instance that somebody else made.
func TestUnpinned(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "unpinned-" + e.Name
		t.Cleanup(func() { e.Delete(t, name) })
		e.Run(t, "launch", e.Image, name)
		want := e.Address(t, name)
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, want, i.Address)
		require.Empty(t, i.Record)
		list, err := r.List(t.Context(), "unpinned-")
		require.NoError(t, err)
		require.Equal(t, []webspace.Instance{i}, list)
	})
}

// TestCopied has somebody copy an instance, and its pinned address with it. Both start, each where nobody else is.
func TestCopied(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		original, dup := "original-"+e.Name, "copy-"+e.Name
		create(t, e, r, original, e.Image)
		t.Cleanup(func() { e.Delete(t, dup) })
		before, err := r.Get(t.Context(), original)
		require.NoError(t, err)
		e.Run(t, "copy", original, dup)
		require.NoError(t, r.SetRecord(t.Context(), original, []byte("1"), ""))
		require.NoError(t, r.Start(t.Context(), original))
		first, err := r.Get(t.Context(), original)
		require.NoError(t, err)
		require.NotEqual(t, before.Address, first.Address)
		require.Equal(t, first.Address, e.Address(t, original))
		require.Equal(t, "1", string(first.Record))
		require.NoError(t, r.SetRecord(t.Context(), original, []byte("2"), ""))

		require.NoError(t, r.Start(t.Context(), dup))
		second, err := r.Get(t.Context(), dup)
		require.NoError(t, err)
		require.Equal(t, before.Address, second.Address, "it is free by now")
		require.NoError(t, r.Restart(t.Context(), original, 0))
		again, err := r.Get(t.Context(), original)
		require.NoError(t, err)
		require.Equal(t, first.Address, again.Address)
	})
}

// TestConcurrentCreates has two programs create instances at the same time.
func TestConcurrentCreates(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		programs := []*lxd.Runtime{connect(t, e, nil), connect(t, e, nil)}
		var group sync.WaitGroup
		errs := make([]error, 6)
		for n := range errs {
			name := fmt.Sprintf("many-%s-%d", e.Name, n)
			t.Cleanup(func() { e.Delete(t, name) })
			group.Go(func() {
				errs[n] = programs[n%2].Create(t.Context(), name, webspace.CreateOptions{Image: e.Image})
			})
		}
		group.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		list, err := programs[0].List(t.Context(), "many-"+e.Name)
		require.NoError(t, err)
		addresses := map[netip.Addr]string{}
		for _, i := range list {
			require.True(t, i.Address.IsValid())
			require.Empty(t, addresses[i.Address], i.Address)
			addresses[i.Address] = i.Name
		}
		require.Len(t, addresses, len(errs))
	})
}

// TestFullNetwork creates instances on a network that has room for two.
func TestFullNetwork(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		network := e.Network + "s"
		t.Cleanup(func() {
			e.Delete(t, "full-"+e.Name+"-1", "full-"+e.Name+"-2")
			e.Run(t, "profile", "delete", "small")
			e.Run(t, "network", "delete", network)
		})
		e.Run(t, "network", "create", network, "ipv4.address=198.18.254.1/29", "ipv4.nat=false", "ipv6.address=none",
			"ipv4.firewall=false", "ipv6.firewall=false", "dns.mode=none", "ipv4.dhcp.ranges=198.18.254.3-198.18.254.4")
		e.Run(t, "profile", "copy", e.Profile, "small")
		e.Run(t, "profile", "device", "set", "small", "eth0", "network="+network)
		r := connect(t, e, func(o *lxd.Options) { o.Profile = "small" })
		create(t, e, r, "full-"+e.Name+"-1", e.Image)
		i, err := r.Get(t.Context(), "full-"+e.Name+"-1")
		require.NoError(t, err)
		require.Contains(t, []string{"198.18.254.2", "198.18.254.5", "198.18.254.6"}, i.Address.String())
		// Somebody else's profile pins what is left.
		e.Run(t, "profile", "copy", "small", "pins")
		t.Cleanup(func() { e.Run(t, "profile", "delete", "pins") })
		for n, address := range []string{"198.18.254.2", "198.18.254.3", "198.18.254.4", "198.18.254.5", "198.18.254.6"} {
			if address == i.Address.String() {
				continue
			}
			name := fmt.Sprintf("full-%s-pin-%d", e.Name, n)
			t.Cleanup(func() { e.Delete(t, name) })
			e.Run(t, "init", e.Image, name, "--profile=pins")
			e.Run(t, "config", "device", "override", name, "eth0", "ipv4.address="+address)
		}
		err = r.Create(t.Context(), "full-"+e.Name+"-2", webspace.CreateOptions{Image: e.Image})
		require.True(t, errdefs.IsResourceExhausted(err), err)
		_, err = r.Get(t.Context(), "full-"+e.Name+"-2")
		require.True(t, errdefs.IsNotFound(err), err)
	})
}

func TestWarnings(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		connect(t, e, func(o *lxd.Options) { o.Logger = logger })
		require.Contains(t, log.String(), "security.mac_filtering")
		require.Contains(t, log.String(), "security.ipv4_filtering")
		if e.Filtered == "" {
			t.Skip("this host can not filter")
		}
		log.Reset()
		r := connect(t, e, func(o *lxd.Options) { o.Logger, o.Profile = logger, e.Filtered })
		require.Empty(t, log.String())
		name := fmt.Sprintf("filtered-%s-%d", e.Name, time.Now().UnixNano()%1e9)
		create(t, e, r, name, e.Image)
		require.Equal(t, "true\n", e.Run(t, "config", "device", "get", name, "eth0", "security.ipv4_filtering"))
		require.NoError(t, r.Start(t.Context(), name))
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, i.Address, e.Address(t, name))
		require.NoError(t, r.Stop(t.Context(), name, 0))
	})
}
