package webspace_test

import (
	"fmt"
	"net/netip"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
)

// webspaceUser is the n-th of many users.
func webspaceUser(n int) identity.UserID { return identity.UserID(2000 + n) }

// populate adds many users, fill their webspaces, as if they had been there for long.
func populate(w *world, n int) {
	for i := range n {
		w.users.add(webspaceUser(i), fmt.Sprintf("user%d", i))
	}
}

func fill(w *world, n int) {
	address := netip.MustParseAddr("127.64.0.1")
	for i := range n {
		w.runtime.Put(stored(webspaceUser(i), webspace.StatusStopped, address))
		address = address.Next()
	}
}

// stored is an instance as webspaced has left it.
func stored(id identity.UserID, status webspace.Status, address netip.Addr) webspace.Instance {
	name := "ws-u" + id.String()
	return webspace.Instance{
		Name: name, Status: status, Address: address,
		Record: fmt.Appendf(nil, `{"user":%d,"instance":%q,"config":{"startupDelay":3,"httpPort":80,"sniPassthrough":false},"domains":[],"ports":{}}`, id, name),
	}
}
