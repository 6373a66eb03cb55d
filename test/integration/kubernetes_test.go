package integration_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
)

// cluster is a namespace of a real API server that is prepared for webspaced.
type cluster struct {
	*testbed.KubernetesServer
	namespace string
}

const deploy = "../../deploy/kubernetes/"

// startCluster runs the daemon with the sample configuration for Kubernetes, and the rights that go with it, in a namespace
// of a real API server. What differs from the sample is in the environment.
func startCluster(t *testing.T, e *testbed.Engine, prefix string, env []string) *edge {
	t.Helper()
	k := testbed.Kubernetes(t)
	k.DefineTraefik(t, testbed.TraefikV3)
	k.DefineCertManager(t)
	namespace := k.Namespace(t)
	for _, rights := range []string{"rbac.yaml", "rbac-certmanager.yaml", "rbac-ports.yaml"} {
		k.ApplyFile(t, namespace, deploy+rights)
	}
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`
apiVersion: v1
kind: Service
metadata: {name: webspaced}
spec: {ports: [{name: http, port: 8081}, {name: tls, port: 8443}]}
---
apiVersion: v1
kind: Service
metadata: {name: webspaced-ports}
spec: {ports: [{name: other, port: 80}]}
`))...)
	chain, key := testbed.EncodePEM(t, testbed.NewCA(t, "platform").Issue("*.ws.example.test"))
	k.TLSSecret(t, namespace, "webspaces-tls", chain, key)
	services := k.Client(t).Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace(namespace)
	service, err := services.Get(t.Context(), "webspaced", metav1.GetOptions{})
	require.NoError(t, err)
	address, _, err := unstructured.NestedString(service.Object, "spec", "clusterIP")
	require.NoError(t, err)
	// There is no kube-proxy that leads from the cluster IP to the daemon: it listens there itself.
	require.NoError(t, exec.Command("ip", "address", "add", address+"/32", "dev", "lo").Run())
	t.Cleanup(func() { _ = exec.Command("ip", "address", "del", address+"/32", "dev", "lo").Run() })

	d := &daemon{api: testbed.Addresses(t, 1)[0], gateway: address + ":8081", config: deploy + "webspaced.yaml"}
	d.env = append([]string{
		"WSD_LOG_LEVEL=debug", "WSD_TIMEOUTS_UNREADY=0s",
		"WSD_WEBSPACES_DOMAIN=ws.example.test", "WSD_WEBSPACES_INSTANCE_PREFIX=" + prefix, "WSD_WEBSPACES_LXD_PROFILE=" + e.Profile,
		"WSD_LXD_URL=" + e.URL, "WSD_LXD_TLS_SERVER_CERT_FILE=" + e.ServerCert,
		"WSD_LXD_TLS_CLIENT_CERT_FILE=" + e.ClientCert, "WSD_LXD_TLS_CLIENT_KEY_FILE=" + e.ClientKey,
		"WSD_IDENTITY_PROVIDER=static", "WSD_IDENTITY_STATIC_USERS=" + users,
		"WSD_HTTP_LISTEN_ADDRESS=" + d.api, "WSD_HTTP_LIMITS_RATE=10000", "WSD_HTTP_LIMITS_BURST=10000",
		"WSD_HTTP_LIMITS_EXPENSIVE_RATE=10000", "WSD_HTTP_LIMITS_EXPENSIVE_BURST=10000",
		"WSD_GATEWAY_HTTP_LISTEN_ADDRESS=" + d.gateway, "WSD_GATEWAY_TLS_LISTEN_ADDRESS=" + address + ":8443",
		"WSD_GATEWAY_TRUSTED_PROXIES=" + address,
		"WSD_TRAEFIK_KUBERNETES_NAMESPACE=" + namespace,
		"WSD_TRAEFIK_KUBERNETES_KUBECONFIG=" + k.Kubeconfig(t, k.AccountConfig(t, namespace, "webspaced")),
	}, env...)
	d.run(t)
	flags := append(k.TraefikFlags(namespace), traefiktest.DefaultCertificate(t, t.TempDir()))
	return &edge{daemon: d, cluster: &cluster{k, namespace}, proxy: follower(t, flags)}
}
