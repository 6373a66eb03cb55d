package main

import (
	"strings"

	"github.com/netsoc/webspaced/metrics"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/proxy"
)

func newMetrics() *metrics.Metrics {
	v, _, _ := strings.Cut(strings.TrimPrefix(version(), "webspaced "), ",")
	return metrics.New(v)
}

// measured has the API's server serve and count for m.
func measured(o *openapi.Options, m *metrics.Metrics, token string) *openapi.Options {
	o.Metrics, o.Observe = m.Handler(token), m.ObserveRequest
	return o
}

// collect has the metrics read from what the daemon is made of.
func (d *daemon) collect(apiConns, gatewayConns *proxy.Conns) error {
	return d.metrics.Collect(metrics.Sources{
		Manager: d.manager, Gateway: d.gateway, Forwarder: d.forwarder, TLS: d.edge, Holds: d.holds,
		GatewayConns: gatewayConns, APIConns: apiConns,
	})
}
