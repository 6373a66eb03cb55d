package webspace_test

import (
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestPassthrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tlsGateway = "tcp://gateway:8443"
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.opts.TLSGateway = tlsGateway })
		name := w.create(1000)
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name))
		_, err := w.RouteTLS("alice.example.test")
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		_, err = w.RouteTLS("nobody.example.test")
		require.True(t, errdefs.IsNotFound(err), "%v", err)

		on, off, port := true, false, 443
		_, err = w.SetConfig(t.Context(), 1000, webspace.ConfigChange{SNIPassthrough: &on, HTTPPort: &port})
		require.NoError(t, err)
		w.settled()
		require.Equal(t, tlsGateway, w.backend(name))
		target, err := w.RouteTLS("Alice.Example.Test.")
		require.NoError(t, err)
		require.Equal(t, proxy.Target{Webspace: name, Port: 443}, target)
		_, err = w.Route("alice.example.test")
		require.True(t, errdefs.IsFailedPrecondition(err), "what it takes is TLS")

		endpoint, err := w.Activate(t.Context(), target)
		require.NoError(t, err)
		endpoint.Release(nil)
		w.settled()
		require.Equal(t, "tcp://"+endpoint.Address.String(), w.backend(name))
		require.NoError(t, w.Stop(t.Context(), 1000))
		w.settled()
		require.Equal(t, tlsGateway, w.backend(name))
		_, err = w.SetConfig(t.Context(), 1000, webspace.ConfigChange{SNIPassthrough: &off})
		require.NoError(t, err)
		w.settled()
		require.Equal(t, gatewayURL, w.backend(name))
	})
}

func TestTLSGatewayIsChecked(t *testing.T) {
	for _, bad := range []string{"gateway:8443", "http://gateway:8443", "tcp://gateway", "tcp://gateway:8443/"} {
		_, err := webspace.NewManager(runtimetest.NewFake(nil), newPeople(), "example.test", &webspace.Options{TLSGateway: bad})
		require.True(t, errdefs.IsInvalidArgument(err), bad)
	}
}
