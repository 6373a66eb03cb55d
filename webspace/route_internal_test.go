package webspace

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

func TestDesiredRoute(t *testing.T) {
	const gateway, instance = "http://gateway:8081", "http://10.0.0.7:80"
	const tlsGateway, tlsInstance = "tcp://gateway:8443", "tcp://10.0.0.7:80"
	host, err := provider.ParseHost("alice.example.test")
	require.NoError(t, err)
	v := func(change func(*view)) view {
		v := view{known: true, status: StatusRunning, address: netip.MustParseAddr("10.0.0.7")}
		v.record.Config.HTTPPort = 80
		if change != nil {
			change(&v)
		}
		return v
	}
	running := v(nil)
	passthrough := v(func(v *view) { v.record.Config.SNIPassthrough = true })
	tests := map[string]struct {
		view    view
		nobody  bool // owns no host name
		port    readiness
		current string
		direct  string // backend wanted in mode direct; empty: no route. In mode inline it is the gateway then.
	}{
		"accepts":                       {view: running, port: accepting, direct: instance},
		"accepts, was at the gateway":   {view: running, port: accepting, current: gateway, direct: instance},
		"silent":                        {view: running, port: silent, direct: gateway},
		"silent, was there":             {view: running, port: silent, current: instance, direct: gateway},
		"not probed":                    {view: running, current: gateway, direct: gateway},
		"not probed, is there":          {view: running, current: instance, direct: instance},
		"not probed, is elsewhere":      {view: running, current: "http://10.0.0.8:80", direct: gateway},
		"not probed, another port":      {view: running, current: "http://10.0.0.7:8080", direct: gateway},
		"no host name":                  {view: running, nobody: true, port: accepting},
		"about to stop":                 {view: v(func(v *view) { v.detour = true }), port: accepting, current: instance, direct: gateway},
		"about to be deleted":           {view: v(func(v *view) { v.deleting = true }), port: accepting, current: instance},
		"quarantined":                   {view: v(func(v *view) { v.bad = errors.New("bad") }), port: accepting},
		"not read":                      {view: v(func(v *view) { v.known = false }), port: accepting},
		"unfinished":                    {view: v(func(v *view) { v.record.Creating = true }), port: accepting},
		"takes TLS, accepts":            {view: passthrough, port: accepting, direct: tlsInstance},
		"takes TLS, silent":             {view: passthrough, port: silent, current: tlsInstance, direct: tlsGateway},
		"takes TLS, not probed":         {view: passthrough, current: tlsInstance, direct: tlsInstance},
		"takes TLS, took HTTP":          {view: passthrough, current: instance, direct: tlsGateway},
		"took TLS":                      {view: running, current: tlsInstance, direct: gateway},
		"takes TLS, stopped":            {view: v(func(v *view) { v.record.Config.SNIPassthrough, v.status = true, StatusStopped }), port: accepting, current: tlsInstance, direct: tlsGateway},
		"running without an address":    {view: v(func(v *view) { v.address = netip.Addr{} }), port: accepting, direct: gateway},
		"stopped, with a known address": {view: v(func(v *view) { v.status = StatusStopped }), port: accepting, current: instance, direct: gateway},
		"starting":                      {view: v(func(v *view) { v.status = StatusStarting }), direct: gateway},
		"stopping":                      {view: v(func(v *view) { v.status = StatusStopping }), current: instance, direct: gateway},
		"frozen":                        {view: v(func(v *view) { v.status = StatusFrozen }), port: accepting, direct: gateway},
		"in error":                      {view: v(func(v *view) { v.status = StatusError }), port: accepting, direct: gateway},
	}
	for name, test := range tests {
		hosts := []provider.Host{host}
		if test.nobody {
			hosts = nil
		}
		for _, mode := range []Mode{Direct, Inline} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				route, ok := desiredRoute("ws-u1", test.view, hosts, test.port, test.current, mode, gateways{gateway, tlsGateway})
				require.Equal(t, test.direct != "", ok)
				if !ok {
					return
				}
				require.NoError(t, route.Validate())
				want := provider.Route{Name: "ws-u1", Hosts: hosts, Backend: test.direct}
				if mode == Inline {
					want.Backend = gateway
					if test.view.record.Config.SNIPassthrough {
						want.Backend = tlsGateway
					}
				}
				require.Equal(t, want, route)
				_, ok = desiredRoute("ws-u1", test.view, hosts, test.port, test.current, mode, gateways{http: gateway})
				require.Equal(t, !test.view.record.Config.SNIPassthrough, ok, "without a gateway for TLS, nothing is passed through")
			})
		}
	}
}

func TestRoutesRead(t *testing.T) {
	route := func(name, backend string) provider.Route { return provider.Route{Name: name, Backend: backend} }
	var r routes
	require.False(t, r.known())
	r.set("changed", route("changed", "old"), true)
	r.set("removed", route("removed", "old"), true)
	since := r.now()
	r.set("changed", route("changed", "new"), true)
	r.set("added", route("added", "new"), true)
	r.set("removed", provider.Route{}, false)
	// This is what stood before.
	r.replace([]provider.Route{route("changed", "old"), route("removed", "old"), route("foreign", "x")}, since)
	require.False(t, r.known())
	r.complete()
	require.True(t, r.known())
	require.ElementsMatch(t, []provider.Route{route("changed", "new"), route("added", "new"), route("foreign", "x")}, r.all())
	r.replace([]provider.Route{route("changed", "old")}, r.now())
	require.Equal(t, []provider.Route{route("changed", "old")}, r.all())

	r.doubt("changed")
	current, ok := r.get("changed")
	require.True(t, ok)
	require.Equal(t, []provider.Route{route("changed", "old")},
		provider.Plan([]provider.Route{route("changed", "old")}, []provider.Route{current}).Put)
	require.False(t, r.movedAt("changed").IsZero(), "it may have moved")
}
