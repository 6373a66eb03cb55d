package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// guardDemo keeps others away from the demo's API, whose tokens everybody knows and which runs commands as whoever has
// started it: web pages, which could reach it under a name of theirs that leads here (DNS rebinding), and other users of
// this computer.
func guardDemo(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopbackHost(r.Host) {
			http.Error(w, "The demo answers to localhost and loopback addresses only.", http.StatusForbidden)
			return
		}
		server, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if uid, err := peerUID(r.RemoteAddr, fmt.Sprint(server)); err != nil || uid != os.Getuid() {
			http.Error(w, "The demo answers to the user who has started it only.", http.StatusForbidden)
			return
		}
		api.ServeHTTP(w, r)
	})
}

func isLoopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// peerUID returns the user who has the client's end of a TCP connection within this computer. Linux keeps all sockets in
// /proc/net/tcp and tcp6 (proc(5)): addresses as hexadecimal words in the host's order, and the user's number.
func peerUID(client, server string) (int, error) {
	from, err := netip.ParseAddrPort(client)
	if err != nil {
		return 0, err
	}
	to, err := netip.ParseAddrPort(server)
	if err != nil {
		return 0, err
	}
	path := "/proc/net/tcp"
	if from.Addr().Is6() {
		path = "/proc/net/tcp6"
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 7 && fields[1] == procAddress(from) && fields[2] == procAddress(to) {
			return strconv.Atoi(fields[7])
		}
	}
	return 0, fmt.Errorf("nobody on this computer has the socket %s", client)
}

func procAddress(a netip.AddrPort) string {
	raw := a.Addr().AsSlice()
	for word := raw; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(raw)), a.Port())
}
