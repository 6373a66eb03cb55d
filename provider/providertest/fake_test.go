package providertest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
)

func route(t *testing.T, name, backend string, hosts ...string) provider.Route {
	t.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(t, err)
		r.Hosts = append(r.Hosts, host)
	}
	require.NoError(t, r.Validate())
	return r
}

func TestFakeCountsAndFails(t *testing.T) {
	ctx := t.Context()
	fake := providertest.NewFake()
	a := route(t, "ws-u1", "http://127.0.0.1:80", "a.example.org")
	b := route(t, "ws-u2", "http://127.0.0.2:80", "b.example.org")
	broken := errors.New("broken")

	fake.Hook(func(_ context.Context, call providertest.Call) error {
		if call == (providertest.Call{Op: providertest.OpPut, Route: "ws-u1"}) {
			return broken
		}
		return nil
	})
	err := fake.Apply(ctx, provider.Changes{Put: []provider.Route{a, b}})
	require.ErrorIs(t, err, broken)
	routeError, ok := errors.AsType[*provider.RouteError](err)
	require.True(t, ok)
	require.Equal(t, "ws-u1", routeError.Route)

	_, ok = fake.Route("ws-u1")
	require.False(t, ok)
	stored, ok := fake.Route("ws-u2")
	require.True(t, ok)
	require.Equal(t, b, stored)

	fake.Hook(func(context.Context, providertest.Call) error { return broken })
	_, err = fake.Routes(ctx)
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, fake.Apply(ctx, provider.Changes{Delete: []string{"ws-u2"}}), broken)

	fake.Hook(nil)
	fake.Damage("ws-u2")
	routes, err := fake.Routes(ctx)
	require.NoError(t, err)
	require.Equal(t, []provider.Route{{Name: "ws-u2"}}, routes)
	require.NoError(t, fake.Apply(ctx, provider.Changes{Delete: []string{"ws-u2", "ws-u9"}}))

	require.Equal(t, 2, fake.Calls(providertest.OpPut))
	require.Equal(t, 2, fake.Calls(providertest.OpDelete))
	require.Equal(t, 3, fake.Calls(providertest.OpApply))
	require.Equal(t, 2, fake.Calls(providertest.OpRoutes))
}
