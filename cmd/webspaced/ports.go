package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/netsoc/webspaced/webspace"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// warnOfEphemeralPorts says what to do if the kernel may give an external port to an outgoing connection of this host.
// While there is such a connection, nobody can listen on its port.
func warnOfEphemeralPorts(ports webspace.PortRange, log *slog.Logger) {
	const sysctls = "/proc/sys/net/ipv4/"
	ephemeral, err := os.ReadFile(sysctls + "ip_local_port_range")
	if err != nil {
		return // another system, or not ours to see
	}
	reserved, err := os.ReadFile(sysctls + "ip_local_reserved_ports")
	if err != nil {
		return
	}
	if reserve := unreserved(ports.First, ports.Last, string(ephemeral), string(reserved)); reserve != "" {
		log.Warn("this host may use external ports of webspaces for its own connections, and they can not be opened then; keep it from that",
			"run", fmt.Sprintf("sysctl -w net.ipv4.ip_local_reserved_ports=%s", reserve))
	}
}

type portSpan struct{ first, last int }

// unreserved returns what ip_local_reserved_ports has to be for the kernel to leave the given ports alone; empty if it
// does. ephemeral and reserved are as the kernel shows them: "32768 60999" and "8080,9000-9100".
func unreserved(first, last int, ephemeral, reserved string) string {
	var low, high int
	if _, err := fmt.Sscan(ephemeral, &low, &high); err != nil {
		return ""
	}
	low, high = max(low, first), min(high, last)
	var spans []portSpan
	for item := range strings.SplitSeq(strings.TrimSpace(reserved), ",") {
		var s portSpan
		switch n, _ := fmt.Sscanf(item, "%d-%d", &s.first, &s.last); n {
		case 1:
			s.last = s.first
			fallthrough
		case 2:
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b portSpan) int { return cmp.Compare(a.first, b.first) })
	for _, s := range spans {
		if s.first <= low {
			low = max(low, s.last+1)
		}
	}
	if low > high {
		return ""
	}
	return strings.TrimPrefix(fmt.Sprintf("%s,%d-%d", strings.TrimSpace(reserved), first, last), ",")
}
