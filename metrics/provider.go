package metrics

import (
	"context"
	"time"

	"github.com/netsoc/webspaced/provider"
)

const (
	opRead  = "read"
	opWrite = "write"

	changePut    = "put"
	changeDelete = "delete"
)

// Provider measures p, and is a [provider.Watcher] if p is one; nil stays nil. What else p can do, such as serving its routes
// itself, is asked of p and not of the result.
func (m *Metrics) Provider(p provider.Provider) provider.Provider {
	if p == nil {
		return nil
	}
	measured := measuredProvider{m, p}
	if watcher, ok := p.(provider.Watcher); ok {
		return watchedProvider{measured, watcher}
	}
	return measured
}

type watchedProvider struct {
	measuredProvider
	provider.Watcher
}

type measuredProvider struct {
	metrics *Metrics
	next    provider.Provider
}

func (p measuredProvider) Routes(ctx context.Context) ([]provider.Route, error) {
	began := time.Now()
	routes, err := p.next.Routes(ctx)
	p.metrics.provider.WithLabelValues(opRead, resultOf(err)).Observe(time.Since(began).Seconds())
	return routes, err
}

func (p measuredProvider) Apply(ctx context.Context, changes provider.Changes) error {
	began := time.Now()
	err := p.next.Apply(ctx, changes)
	p.metrics.provider.WithLabelValues(opWrite, resultOf(err)).Observe(time.Since(began).Seconds())
	failures := provider.RouteErrors(err)
	count := func(change, route string) {
		e := err
		if len(failures) > 0 { // else it is about all of them
			e = failures[route]
		}
		p.metrics.routeChanges.WithLabelValues(change, resultOf(e)).Inc()
	}
	for _, route := range changes.Put {
		count(changePut, route.Name)
	}
	for _, name := range changes.Delete {
		count(changeDelete, name)
	}
	return err
}
