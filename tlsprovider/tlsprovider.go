// Package tlsprovider defines what obtains certificates for the host names of webspaces.
//
// An [Issuer] has one certificate for each host that is ordered, and keeps it valid, so that one domain with trouble takes
// no other down. Certificates and domains outlive whether a webspace runs: an order stands until it is cancelled. A host is
// only ever ordered for somebody who has proven to control it; no connection and no server name orders anything.
//
// Who writes an issuer implements the three methods of [Issuer], and those of [Watcher], [Holder] and [Challenger] that it
// can, and runs issuertest.Run against it.
package tlsprovider

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/provider"
)

// Order asks for the certificate of one host.
type Order struct {
	Host provider.Host
	// Owner is who the host belongs to: a DNS label, such as "ws-u1000". Budgets count per owner.
	Owner string
}

// Validate reports what is wrong with o, as InvalidArgument.
func (o Order) Validate() error {
	if o.Host == (provider.Host{}) {
		return fmt.Errorf("order of a certificate without a host: %w", errdefs.ErrInvalidArgument)
	}
	if !provider.IsLabel(o.Owner) {
		return fmt.Errorf("owner %q of the certificate of %s is not a DNS label: %w", o.Owner, o.Host, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Status is how far an order has come.
type Status struct {
	// Certificate is what a route refers to. It is the zero Certificate as long as there is nothing to refer to; one that
	// names a Secret or a Resolver may stand for a certificate that is still to come.
	Certificate provider.Certificate
	// Problem is why there is no certificate yet, or why the one there is can not be renewed, in words for the owner of
	// the host. Empty: all is well.
	Problem string
}

// Issuer obtains certificates and keeps them valid.
//
// Everything an issuer writes carries a mark of its deployment, and it never changes what does not carry it.
//
// Implementations are safe for concurrent use; calls for one host are serialised by the caller. Errors are classes of
// github.com/containerd/errdefs: Unavailable when what it depends on can not be reached (the caller tries again, with a
// back-off), PermissionDenied when that forbids it, InvalidArgument for an order that can not be expressed, AlreadyExists
// when something that is not ours is in its place, ResourceExhausted when there are too many. Every call ends with ctx.
type Issuer interface {
	// Order makes sure that there is or will be a certificate, and says how far it has come. It is idempotent, returns
	// without waiting for the certificate, and costs next to nothing when nothing has changed. Of two orders of one host
	// the last owner counts. That a certificate can not be had (its owner's DNS is wrong, a budget is used up) is a
	// Problem of the status, not an error.
	Order(ctx context.Context, order Order) (Status, error)

	// Cancel ends the order of a host: its certificate is not renewed any more, and may be thrown away. Cancelling what
	// is not ordered is a success.
	Cancel(ctx context.Context, host provider.Host) error

	// Orders returns all orders of this deployment that stand, also those made before a restart.
	Orders(ctx context.Context) ([]Order, error)
}

// Watcher is an [Issuer] that knows when a status changes.
type Watcher interface {
	// Watch calls changed with each host whose status may have changed, until ctx ends, which is its only way to return
	// unless what it watches breaks. What has changed while nobody watched is not told. changed does not block.
	Watch(ctx context.Context, changed func(provider.Host)) error
}

// Holder is an [Issuer] that has the certificates itself, for servers that terminate TLS.
type Holder interface {
	// GetCertificate is for the field of that name in [tls.Config]. It answers from memory: a server name that is not
	// ordered is an error, and causes nothing.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Challenger is an [Issuer] that has to answer a certificate authority over HTTP (HTTP-01, RFC 8555 section 8.3).
type Challenger interface {
	// HandleChallenge answers r if it is a challenge of an order that is under way, and returns whether it was.
	HandleChallenge(w http.ResponseWriter, r *http.Request) bool
}
