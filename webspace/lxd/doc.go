// Package lxd is a [webspace.Runtime] on LXD 5.0 and Incus 6.0.
//
//	runtime, err := lxd.Connect(ctx, &lxd.Options{Profile: "webspace"})
//
// # What an operator sets up
//
// A managed bridge with IPv4, on which the engine's DHCP server gives instances their addresses:
//
//	lxc network create webspaces ipv4.address=10.100.0.1/16 ipv6.address=none
//
// A profile for new instances, with a root disk and one NIC on that network. The filters keep root in a guest from sending
// with the address of another guest, port isolation keeps guests from talking to each other; limits are a good idea too:
//
//	lxc profile create webspace
//	lxc profile device add webspace root disk pool=default path=/ size=10GiB
//	lxc profile device add webspace eth0 nic network=webspaces name=eth0 \
//		security.mac_filtering=true security.ipv4_filtering=true security.port_isolation=true
//
// And images: only what the engine has can be used, see "lxc image list". An init that does not shut down on the signal
// that the engine sends (SIGPWR) is killed after the time of grace; that of busybox wants another one, which a profile for such
// images says: raw.lxc="lxc.signal.halt=SIGUSR2".
//
// Over HTTPS, a certificate that the engine restricts to one project is enough.
//
// # Addresses
//
// Create gives an instance a free address of the network and pins it, as ipv4.address of a device of the instance's own
// that is otherwise a copy of the profile's NIC: to change a filter of existing instances, change their devices. The DHCP
// server hands it out. Addresses outside the network's ipv4.dhcp.ranges are preferred, if it has any. Of an instance that
// was made by others and has no pinned address, the DHCP lease of the NIC's MAC counts. What a guest says does not.
//
// A copy that is made with the engine's own tools has the pinned address of its original, and the engine then starts neither:
// Start gives the instance that it starts a new one.
//
// # Records
//
// The record is the instance's user._webspaced. It has to be UTF-8 text, and root in the guest can read it.
package lxd
