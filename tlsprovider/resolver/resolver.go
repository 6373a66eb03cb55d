// Package resolver is an issuer that leaves certificates to the reverse proxy: routes name one of Traefik's own certificate
// resolvers (certificatesResolvers in its static configuration), which obtains a certificate of each host that it serves.
//
//	i, err := resolver.New("letsencrypt")
//
// Traefik decides when to obtain and renew, and keeps what it obtains. There is nothing to be known of that here, and no
// Problem is ever reported: look at Traefik's log.
package resolver

import (
	"context"
	"slices"
	"sync"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Issuer names a certificate resolver. It implements [tlsprovider.Issuer], and is safe for concurrent use.
type Issuer struct {
	name string

	mu     sync.Mutex
	orders map[provider.Host]string // owners
}

var _ tlsprovider.Issuer = (*Issuer)(nil)

// New returns an Issuer of the resolver of that name. InvalidArgument: none can have that name.
func New(name string) (*Issuer, error) {
	host, err := provider.ParseHost("host.invalid")
	if err != nil {
		return nil, err
	}
	if err := (provider.Certificate{Host: host, Resolver: name}).Validate(); err != nil {
		return nil, err
	}
	return &Issuer{name: name, orders: map[provider.Host]string{}}, nil
}

// Order implements [tlsprovider.Issuer].
func (i *Issuer) Order(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
	if err := ctx.Err(); err != nil {
		return tlsprovider.Status{}, err
	}
	if err := order.Validate(); err != nil {
		return tlsprovider.Status{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.orders[order.Host] = order.Owner
	return tlsprovider.Status{Certificate: provider.Certificate{Host: order.Host, Resolver: i.name}}, nil
}

// Cancel implements [tlsprovider.Issuer]. Traefik stops renewing when no route has the host any more.
func (i *Issuer) Cancel(ctx context.Context, host provider.Host) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.orders, host)
	return nil
}

// Orders implements [tlsprovider.Issuer]. There are none after a restart: what was ordered before has left nothing that
// would have to be cancelled.
func (i *Issuer) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	orders := make([]tlsprovider.Order, 0, len(i.orders))
	for host, owner := range i.orders {
		orders = append(orders, tlsprovider.Order{Host: host, Owner: owner})
	}
	slices.SortFunc(orders, func(a, b tlsprovider.Order) int { return a.Host.Compare(b.Host) })
	return orders, nil
}
