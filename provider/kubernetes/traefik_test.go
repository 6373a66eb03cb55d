package kubernetes_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/kubernetes"
)

// address is one of this host's that is not on the loopback: Kubernetes takes none of these for an endpoint.
const address = "198.18.255.251"

func store(t testing.TB, version testbed.TraefikVersion) traefiktest.Store {
	require.NoError(t, exec.Command("ip", "address", "replace", address+"/32", "dev", "lo").Run(), "needs root")
	w := newWorld(t)
	if version == testbed.TraefikV2 { // which wants the names of its kinds that it had before, too, or starts nothing
		w.DefineTraefik(t, version)
	}
	return traefiktest.Store{
		Flags: w.TraefikFlags(w.namespace),
		Open: func(string) (provider.Provider, error) {
			return kubernetes.New(w.account, w.namespace, &kubernetes.Options{
				HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", QPS: 1000, Burst: 1000, Endpoints: version == testbed.TraefikV2,
			})
		},
		Backends: address, NoChallenges: true,
		Certificate: func(host provider.Host, chain string, key provider.PrivateKey) (provider.Certificate, error) {
			name := fmt.Sprintf("%s-%d", strings.ReplaceAll(host.String(), ".", "-"), len(chain)+len(key))
			name += "-" + fmt.Sprint(len(w.list(t, secrets)))
			w.TLSSecret(t, w.namespace, name, chain, string(key))
			return provider.Certificate{Host: host, Secret: name}, nil
		},
		Away: w.API.Kill,
		Back: func() { w.API.Restart(t) },
	}
}

func TestTraefik(t *testing.T) {
	traefiktest.Run(t, func(t *testing.T, version testbed.TraefikVersion) traefiktest.Store { return store(t, version) })
}

func BenchmarkTraefik(b *testing.B) {
	traefiktest.Benchmark(b, func(b *testing.B, version testbed.TraefikVersion) traefiktest.Store { return store(b, version) })
}
