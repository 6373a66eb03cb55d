package lxd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"
)

// addresses returns the addresses of instances by name. Those that have none are not in it.
//
// Root in a guest can put any address on its interfaces, so what an instance's state lists is worth nothing: it may be
// the gateway, another instance or a host on the Internet. What counts is what the engine assigned to the NIC: its pinned
// address, or what the engine's DHCP server leased to its MAC.
func (r *Runtime) addresses(ctx context.Context, instances []api.InstanceFull) (map[string]netip.Addr, error) {
	n, err := r.currentNIC(ctx)
	if err != nil {
		return nil, err
	}
	found, missing := n.assigned(instances, nil)
	if missing && n.network != "" {
		leases, err := r.recentLeases(ctx, n.network)
		if err != nil {
			return nil, err
		}
		found, missing = n.assigned(instances, byMAC(leases))
	}
	if missing && len(r.opts.TrustedPrefixes) > 0 {
		// All instances, because an address that two claim belongs to neither.
		var all []api.InstanceFull
		if _, err := r.client.get(ctx, r.client.path(url.Values{"recursion": {"2"}}, "instances"), &all); err != nil {
			return nil, err
		}
		n.claimed(all, r.opts.TrustedPrefixes, found)
	}
	return found, nil
}

// lease is an IPv4 address that is in use on a network, and by whom.
type lease struct {
	mac     string
	address netip.Addr
}

// leases returns the addresses that are in use on a network.
func (r *Runtime) leases(ctx context.Context, network string) ([]lease, error) {
	var all []api.NetworkLease
	if _, err := r.client.get(ctx, r.client.path(nil, "networks", network, "leases"), &all); err != nil {
		if errdefs.IsNotFound(err) { // which would seem to be about an instance
			return nil, fmt.Errorf("lxd: network %s is gone: %w", network, errdefs.ErrUnavailable)
		}
		return nil, err
	}
	var leases []lease
	for _, l := range all {
		if address, err := netip.ParseAddr(l.Address); err == nil && address.Is4() {
			leases = append(leases, lease{strings.ToLower(l.Hwaddr), address})
		}
	}
	return leases, nil
}

// byMAC returns the address of each NIC.
func byMAC(leases []lease) map[string]netip.Addr {
	addresses := map[string]netip.Addr{}
	for _, l := range leases {
		// A guest can have several, one for each client ID that it makes up. Always take the same one.
		if old, ok := addresses[l.mac]; l.mac != "" && (!ok || l.address.Less(old)) {
			addresses[l.mac] = l.address
		}
	}
	return addresses
}

// of returns the instance's own NIC on this network.
func (n nic) of(i *api.Instance) (device string, config map[string]string) {
	if config = i.ExpandedDevices[n.device]; n.is(config) {
		return n.device, config
	}
	for _, device := range slices.Sorted(maps.Keys(i.ExpandedDevices)) {
		if config := i.ExpandedDevices[device]; n.is(config) {
			return device, config
		}
	}
	return "", nil
}

func (n nic) is(config map[string]string) bool {
	return config["type"] == "nic" && n.network != "" && networkOf(config) == n.network
}

// assigned returns the pinned and leased addresses, and whether a running instance is left without.
func (n nic) assigned(instances []api.InstanceFull, leases map[string]netip.Addr) (found map[string]netip.Addr, missing bool) {
	found = map[string]netip.Addr{}
	for k := range instances {
		i := &instances[k].Instance
		device, config := n.of(i)
		var address netip.Addr
		if pin := config["ipv4.address"]; pin != "" {
			address, _ = netip.ParseAddr(pin)
		} else {
			mac := config["hwaddr"]
			if mac == "" {
				mac = i.Config["volatile."+device+".hwaddr"]
			}
			address = leases[strings.ToLower(mac)]
			missing = missing || !address.IsValid() && i.IsActive()
		}
		if n.subnet.usable(address) {
			found[i.Name] = address
		}
	}
	return found, missing
}

// claimed adds the addresses that guests gave themselves, where they are believed: if a guest has just one IPv4 address
// in the prefixes, and nobody else has it.
func (n nic) claimed(all []api.InstanceFull, prefixes []netip.Prefix, found map[string]netip.Addr) {
	owners := map[netip.Addr]int{}
	for _, address := range found {
		owners[address]++
	}
	claims := map[string][]netip.Addr{}
	for k := range all {
		i := &all[k]
		if _, config := n.of(&i.Instance); config["ipv4.address"] != "" {
			if pin, err := netip.ParseAddr(config["ipv4.address"]); err == nil && !found[i.Name].IsValid() {
				owners[pin]++
			}
			continue
		}
		if i.State == nil || found[i.Name].IsValid() {
			continue
		}
		for _, network := range i.State.Network {
			for _, a := range network.Addresses {
				address, err := netip.ParseAddr(a.Address)
				if err != nil || !address.Is4() || a.Scope != "global" || slices.Contains(claims[i.Name], address) {
					continue
				}
				for _, p := range prefixes {
					if (subnet{prefix: p.Masked()}).usable(address) {
						claims[i.Name] = append(claims[i.Name], address)
						owners[address]++
						break
					}
				}
			}
		}
	}
	for name, addresses := range claims {
		if a := addresses[0]; len(addresses) == 1 && owners[a] == 1 && (!n.subnet.prefix.IsValid() || n.subnet.usable(a)) {
			found[name] = a
		}
	}
}

// reserve finds an address for a new instance, which nobody else gets until release is called. It is not valid if the
// engine assigns no addresses on the network.
func (r *Runtime) reserve(ctx context.Context, n nic, name string) (address netip.Addr, release func(), err error) {
	if !n.subnet.prefix.IsValid() {
		return netip.Addr{}, func() {}, nil
	}
	leases, err := r.leases(ctx, n.network)
	if err != nil {
		return netip.Addr{}, nil, err
	}
	// Instances of other projects can be on the same network, if we may see them.
	var all []api.Instance
	asking := *r.client
	asking.denied = nil
	_, err = asking.get(ctx, asking.path(url.Values{"recursion": {"1"}, "all-projects": {"true"}}, "instances"), &all)
	if errors.Is(err, errDenied) {
		_, err = r.client.get(ctx, r.client.path(url.Values{"recursion": {"1"}}, "instances"), &all)
	}
	if err != nil {
		return netip.Addr{}, nil, err
	}
	taken := map[netip.Addr]bool{}
	for _, l := range leases {
		taken[l.address] = true
	}
	for i := range all {
		for _, device := range all[i].ExpandedDevices {
			if a, err := netip.ParseAddr(device["ipv4.address"]); err == nil {
				taken[a] = true
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(taken, r.reserved)
	address = n.subnet.free(taken, name)
	if !address.IsValid() {
		return netip.Addr{}, nil, fmt.Errorf("lxd: network %s has no free address: %w", n.network, errdefs.ErrResourceExhausted)
	}
	r.reserved[address] = true
	return address, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.reserved, address)
	}, nil
}

// subnet is the IPv4 part of a managed network.
type subnet struct {
	prefix  netip.Prefix // masked
	gateway netip.Addr
	dhcp    []addressRange // what the DHCP server gives out by itself; empty: all of it
}

type addressRange struct{ first, last netip.Addr }

// parseSubnet reads a network's configuration. The result has no prefix if the network assigns no IPv4 addresses.
func parseSubnet(config map[string]string) subnet {
	p, err := netip.ParsePrefix(config["ipv4.address"])
	if err != nil || !p.Addr().Is4() {
		return subnet{}
	}
	s := subnet{prefix: p.Masked(), gateway: p.Addr()}
	for part := range strings.SplitSeq(config["ipv4.dhcp.ranges"], ",") {
		first, last, _ := strings.Cut(strings.TrimSpace(part), "-")
		a, errA := netip.ParseAddr(strings.TrimSpace(first))
		b, errB := netip.ParseAddr(strings.TrimSpace(last))
		if errA == nil && errB == nil {
			s.dhcp = append(s.dhcp, addressRange{a, b})
		}
	}
	return s
}

// usable reports whether an instance can have the address.
func (s subnet) usable(a netip.Addr) bool {
	if !a.Is4() || !s.prefix.IsValid() || !s.prefix.Contains(a) || a == s.gateway {
		return false
	}
	return s.prefix.Bits() >= 31 || a != s.prefix.Addr() && a != s.last()
}

// last is the broadcast address.
func (s subnet) last() netip.Addr {
	return addr4(uint64(number4(s.prefix.Addr())) + s.size() - 1)
}

func (s subnet) size() uint64 { return 1 << (32 - s.prefix.Bits()) }

// free returns an address that is not taken, preferring those that the DHCP server does not give out by itself. The name
// says where the search begins, so that an address goes back to whom it belonged rather than to the next who comes: proxies
// may still send somebody's requests there.
func (s subnet) free(taken map[netip.Addr]bool, name string) netip.Addr {
	h := fnv.New64a()
	h.Write([]byte(name))
	base, size := uint64(number4(s.prefix.Addr())), s.size()
	start := h.Sum64() % size
	var fallback netip.Addr
	for k := range size {
		a := addr4(base + (start+k)%size)
		if !s.usable(a) || taken[a] {
			continue
		}
		if !slices.ContainsFunc(s.dhcp, func(d addressRange) bool { return !a.Less(d.first) && !d.last.Less(a) }) {
			return a
		}
		if !fallback.IsValid() {
			fallback = a
		}
	}
	return fallback
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr4(n uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}
