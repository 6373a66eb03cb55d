package lxd

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/lxc/lxd/shared/api"
	"github.com/stretchr/testify/require"
)

var bridge = nic{
	device:  "eth0",
	network: "br0",
	subnet:  parseSubnet(map[string]string{"ipv4.address": "198.18.7.1/24"}),
}

func TestSubnet(t *testing.T) {
	s := bridge.subnet
	for address, want := range map[string]bool{
		"198.18.7.2": true, "198.18.7.254": true,
		"198.18.7.0": false, "198.18.7.1": false, "198.18.7.255": false,
		"198.18.6.9": false, "8.8.8.8": false, "::1": false, "::ffff:198.18.7.9": false, "0.0.0.0": false,
	} {
		require.Equal(t, want, s.usable(netip.MustParseAddr(address)), address)
	}
	require.False(t, s.usable(netip.Addr{}))
	for _, config := range []map[string]string{
		nil, {"ipv4.address": "none"}, {"ipv4.address": ""}, {"ipv4.address": "fd00::1/64"}, {"ipv4.address": "198.18.7.1"},
	} {
		none := parseSubnet(config)
		require.False(t, none.prefix.IsValid(), config)
		require.False(t, none.usable(netip.MustParseAddr("198.18.7.2")), config)
	}
}

func TestFreeAddress(t *testing.T) {
	s := parseSubnet(map[string]string{
		"ipv4.address":     "198.18.7.1/28",
		"ipv4.dhcp.ranges": "198.18.7.2-198.18.7.8, 198.18.7.13-198.18.7.14",
	})
	require.Equal(t, s.free(nil, "a"), s.free(nil, "a"), "the same name gets the same address")
	taken := map[netip.Addr]bool{}
	for n := range 13 {
		a := s.free(taken, "a")
		require.True(t, s.usable(a) && !taken[a], a)
		outside := netip.MustParseAddr("198.18.7.8").Less(a) && a.Less(netip.MustParseAddr("198.18.7.13"))
		require.Equal(t, n < 4, outside, "%d: %s: those that the DHCP server does not give out come first", n, a)
		taken[a] = true
	}
	require.False(t, s.free(taken, "a").IsValid(), "none is left")
}

func device(pin string) map[string]map[string]string {
	d := map[string]string{"type": "nic", "network": "br0"}
	if pin != "" {
		d["ipv4.address"] = pin
	}
	return map[string]map[string]string{"eth0": d, "root": {"type": "disk"}}
}

func full(name, pin string, claims ...string) api.InstanceFull {
	i := api.InstanceFull{Instance: api.Instance{Name: name, StatusCode: api.Running, ExpandedDevices: device(pin)}}
	i.Config = map[string]string{"volatile.eth0.hwaddr": "00:16:3E:00:00:" + name}
	state := api.InstanceState{Network: map[string]api.InstanceStateNetwork{"lo": {
		Addresses: []api.InstanceStateNetworkAddress{{Family: "inet", Address: "127.0.0.1", Scope: "local"}},
	}}}
	var eth0 api.InstanceStateNetwork
	for _, c := range claims {
		eth0.Addresses = append(eth0.Addresses, api.InstanceStateNetworkAddress{Family: "inet", Address: c, Scope: "global"})
	}
	state.Network["eth0"] = eth0
	i.State = &state
	return i
}

func TestAssigned(t *testing.T) {
	instances := []api.InstanceFull{
		full("01", "198.18.7.20", "198.18.7.1"),
		full("02", "", "198.18.7.20"),
		full("03", "8.8.8.8"),      // pinned outside of the network, as an administrator can
		full("04", "198.18.7.1"),   // the gateway
		full("05", "198.18.7.255"), // broadcast
		full("06", ""),
		full("07", "none"),
	}
	other := full("08", "198.18.7.30")
	other.ExpandedDevices["eth0"]["network"] = "br1"
	instances = append(instances, other)

	found, missing := bridge.assigned(instances, nil)
	require.True(t, missing)
	require.Equal(t, map[string]netip.Addr{"01": netip.MustParseAddr("198.18.7.20")}, found)

	found, missing = bridge.assigned(instances, map[string]netip.Addr{
		"00:16:3e:00:00:02": netip.MustParseAddr("198.18.7.21"),
		"00:16:3e:00:00:01": netip.MustParseAddr("198.18.7.99"), // the pin comes first
		"00:16:3e:00:00:06": netip.MustParseAddr("198.18.9.1"),  // left from a former network
	})
	require.Equal(t, map[string]netip.Addr{
		"01": netip.MustParseAddr("198.18.7.20"),
		"02": netip.MustParseAddr("198.18.7.21"),
	}, found)
	require.True(t, missing, "06 and 08 run without")
}

func TestClaimed(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("198.18.7.0/24")}
	for name, c := range map[string]struct {
		instances []api.InstanceFull
		want      string // of instance 01
	}{
		"alone":                  {[]api.InstanceFull{full("01", "", "198.18.7.40")}, "198.18.7.40"},
		"and one outside":        {[]api.InstanceFull{full("01", "", "10.0.0.1", "198.18.7.40")}, "198.18.7.40"},
		"two":                    {[]api.InstanceFull{full("01", "", "198.18.7.40", "198.18.7.41")}, ""},
		"the gateway":            {[]api.InstanceFull{full("01", "", "198.18.7.1")}, ""},
		"the network":            {[]api.InstanceFull{full("01", "", "198.18.7.0")}, ""},
		"outside":                {[]api.InstanceFull{full("01", "", "8.8.8.8")}, ""},
		"that of another":        {[]api.InstanceFull{full("01", "", "198.18.7.40"), full("02", "198.18.7.40")}, ""},
		"what another claims":    {[]api.InstanceFull{full("01", "", "198.18.7.40"), full("02", "", "198.18.7.40", "198.18.7.41")}, ""},
		"pinned to another":      {[]api.InstanceFull{full("01", "198.18.7.50", "198.18.7.40")}, "198.18.7.50"},
		"pinned to the gateway":  {[]api.InstanceFull{full("01", "198.18.7.1", "198.18.7.40")}, ""},
		"an address of no guest": {[]api.InstanceFull{full("01", "", "127.0.0.1")}, ""},
	} {
		found, _ := bridge.assigned(c.instances, nil)
		bridge.claimed(c.instances, trusted, found)
		want := netip.Addr{}
		if c.want != "" {
			want = netip.MustParseAddr(c.want)
		}
		require.Equal(t, want, found["01"], name)
	}
}

// TestGuestsCanNotChooseTheirAddress has guests claim random addresses, of which a pinned instance never gets any.
func TestGuestsCanNotChooseTheirAddress(t *testing.T) {
	pool := []string{
		"198.18.7.1", "198.18.7.20", "198.18.7.21", "198.18.7.255", "8.8.8.8", "10.96.0.1", "127.0.0.1", "169.254.169.254",
		"0.0.0.0", "::1", "fd00::1", "", "not an address", "198.18.7.021",
	}
	trusted := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	for range 1000 {
		claims := func() (c []string) {
			for range rand.IntN(6) {
				c = append(c, pool[rand.IntN(len(pool))])
			}
			return c
		}
		instances := []api.InstanceFull{full("01", "198.18.7.20", claims()...), full("02", "198.18.7.21", claims()...), full("03", "", claims()...)}
		found, _ := bridge.assigned(instances, nil)
		bridge.claimed(instances, trusted, found)
		third := found["03"]
		delete(found, "03")
		require.True(t, maps.Equal(found, map[string]netip.Addr{
			"01": netip.MustParseAddr("198.18.7.20"), "02": netip.MustParseAddr("198.18.7.21"),
		}))
		require.False(t, third.IsValid(), "nothing usable is in the pool but what belongs to others")
	}
}
