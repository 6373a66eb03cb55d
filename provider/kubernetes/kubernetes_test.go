package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
	"github.com/netsoc/webspaced/provider/kubernetes"
	"github.com/netsoc/webspaced/provider/providertest"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func resource(group, version, name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: name}
}

var (
	services  = resource("", "v1", "services")
	slicesOf  = resource("discovery.k8s.io", "v1", "endpointslices")
	ingresses = resource("traefik.io", "v1alpha1", "ingressroutes")
	tcps      = resource("traefik.io", "v1alpha1", "ingressroutetcps")
	secrets   = resource("", "v1", "secrets")
)

var definitions sync.Once

// world is a namespace of a real API server, and what may be done there by rbac.yaml.
type world struct {
	*testbed.KubernetesServer
	namespace string
	account   *rest.Config
	admin     dynamic.Interface
}

func newWorld(t testing.TB) *world {
	k := testbed.Kubernetes(t)
	definitions.Do(func() { k.DefineTraefik(t, testbed.TraefikV3) })
	return in(t, k)
}

func in(t testing.TB, k *testbed.KubernetesServer) *world {
	w := &world{KubernetesServer: k, namespace: k.Namespace(t), admin: k.Client(t)}
	k.ApplyFile(t, w.namespace, "../../deploy/kubernetes/rbac.yaml")
	k.Apply(t, w.namespace, testbed.Manifests(t, []byte(`
apiVersion: v1
kind: Service
metadata: {name: gateway}
spec: {ports: [{name: http, port: 8081}, {name: other, port: 8082}]}
`))...)
	w.account = k.AccountConfig(t, w.namespace, "webspaced")
	return w
}

func (w *world) open(t testing.TB, opts kubernetes.Options) *kubernetes.Provider {
	t.Helper()
	opts.GatewayService = "gateway"
	opts.HTTPEntryPoint, opts.HTTPSEntryPoint = "web", "websecure"
	p, err := kubernetes.New(w.account, w.namespace, &opts)
	require.NoError(t, err)
	return p
}

func (w *world) list(t testing.TB, r schema.GroupVersionResource) []unstructured.Unstructured {
	t.Helper()
	list, err := w.admin.Resource(r).Namespace(w.namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	return list.Items
}

// of returns the object of a route of one kind whose name ends so.
func (w *world) of(t testing.TB, r schema.GroupVersionResource, deployment, route, suffix string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range w.list(t, r) {
		l := o.GetLabels()
		if l["app.kubernetes.io/instance"] == deployment && l["webspaced/route"] == route && strings.HasSuffix(o.GetName(), suffix) {
			return &o
		}
	}
	t.Fatalf("no %s of route %s", r.Resource, route)
	return nil
}

func (w *world) patch(t testing.TB, r schema.GroupVersionResource, name string, patch string) error {
	_, err := w.admin.Resource(r).Namespace(w.namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{FieldManager: "somebody"})
	return err
}

func host(t testing.TB, name string) provider.Host {
	h, err := provider.ParseHost(name)
	require.NoError(t, err)
	return h
}

func put(routes ...provider.Route) provider.Changes { return provider.Changes{Put: routes} }

func TestProvider(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("Endpoints=%t", both), func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Harness {
				return harness(t, newWorld(t), kubernetes.Options{Endpoints: both, QPS: 1000, Burst: 1000})
			})
		})
	}
}

func harness(t *testing.T, w *world, opts kubernetes.Options) providertest.Harness {
	gateway := w.service(t, "gateway")
	damage := func(r schema.GroupVersionResource, suffix, patch string) func(string, string) error {
		return func(deployment, route string) error {
			return w.patch(t, r, w.of(t, r, deployment, route, suffix).GetName(), patch)
		}
	}
	remove := func(r schema.GroupVersionResource) func(string, string) error {
		return func(deployment, route string) error {
			o := w.of(t, r, deployment, route, "")
			return w.admin.Resource(r).Namespace(w.namespace).Delete(t.Context(), o.GetName(), metav1.DeleteOptions{})
		}
	}
	return providertest.Harness{
		Open: func(deployment string) (provider.Provider, error) {
			opts := opts
			opts.Deployment = deployment
			return w.open(t, opts), nil
		},
		Lookup: func(h provider.Host) (string, error) { return w.lookup(t, h, gateway) },
		Damage: map[string]func(string, string) error{
			"service gone":       remove(services),
			"slice gone":         remove(slicesOf),
			"ingress gone":       remove(ingresses),
			"service selects":    damage(services, "", `{"spec":{"selector":{"app":"evil"},"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4"]}}`),
			"service is outside": damage(services, "", `{"spec":{"externalIPs":["198.18.9.9"]}}`),
			"another port":       damage(slicesOf, "", `{"ports":[{"name":"other","port":81,"protocol":"TCP"}]}`),
			"two addresses": damage(slicesOf, "",
				`{"endpoints":[{"addresses":["198.18.9.9"]},{"addresses":["198.18.0.1"]}]}`),
			"not ours to Traefik": damage(slicesOf, "", `{"metadata":{"labels":{"kubernetes.io/service-name":"other"}}}`),
			"other entry point":   damage(ingresses, "-http", `{"spec":{"entryPoints":["other"]}}`),
			"TLS options":         damage(ingresses, "-https", `{"spec":{"tls":{"options":{"name":"weak"}}}}`),
			"other rule":          damage(ingresses, "-http", `{"spec":{"routes":[{"match":"PathPrefix(`+"`/`"+`)","kind":"Rule"}]}}`),
		},
		Certificates:   []providertest.CertificateKind{providertest.Secret, providertest.Resolver},
		HasCertificate: func(c provider.Certificate) (bool, error) { return w.certified(t, c), nil },
		WriteForeign:   func(deployment, route string) error { return w.writeForeign(t, deployment, route) },
		ReadForeign: func() ([]byte, error) {
			var all []unstructured.Unstructured
			for _, r := range []schema.GroupVersionResource{services, slicesOf, ingresses} {
				for _, o := range w.list(t, r) {
					if o.GetLabels()["app.kubernetes.io/managed-by"] != "webspaced" {
						all = append(all, o)
					}
				}
			}
			return json.Marshal(all)
		},
	}
}

// certified tells whether an IngressRoute has TLS end for a host with a certificate.
func (w *world) certified(t testing.TB, c provider.Certificate) bool {
	for _, o := range w.list(t, ingresses) {
		routes, _, _ := unstructured.NestedSlice(o.Object, "spec", "routes")
		secret, _, _ := unstructured.NestedString(o.Object, "spec", "tls", "secretName")
		resolver, _, _ := unstructured.NestedString(o.Object, "spec", "tls", "certResolver")
		for _, entry := range routes {
			h, ok := traefik.RuleHost(entry.(map[string]any)["match"].(string))
			if ok && h == c.Host && secret == c.Secret && resolver == c.Resolver {
				return true
			}
		}
	}
	return false
}

// writeForeign writes a Service where that of the route would be, and an IngressRoute with another deployment's mark alone.
func (w *world) writeForeign(t *testing.T, deployment, route string) error {
	p := w.open(t, kubernetes.Options{Deployment: deployment})
	r := provider.Route{Name: route, Backend: "http://198.18.0.7:80", Hosts: []provider.Host{host(t, "x.example.org")}}
	if err := p.Apply(t.Context(), put(r)); err != nil {
		return err
	}
	name := w.of(t, services, deployment, route, "").GetName()
	if err := p.Apply(t.Context(), provider.Changes{Delete: []string{route}}); err != nil {
		return err
	}
	w.Apply(t, w.namespace, testbed.Manifests(t, fmt.Appendf(nil, `
apiVersion: v1
kind: Service
metadata: {name: %[1]s, labels: {app.kubernetes.io/instance: %[2]s, webspaced/route: %[3]s}}
spec: {ports: [{name: web, port: 80}]}
---
apiVersion: traefik.io/v1alpha1
kind: IngressRoute
metadata: {name: %[1]s-other, labels: {app.kubernetes.io/managed-by: helm, app.kubernetes.io/instance: %[2]s, webspaced/route: %[3]s}}
spec: {routes: []}
`, name, deployment, route))...)
	return nil
}

func (w *world) service(t testing.TB, name string) string {
	o, err := w.admin.Resource(services).Namespace(w.namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	ip, _, _ := unstructured.NestedString(o.Object, "spec", "clusterIP")
	require.NotEmpty(t, ip)
	return ip
}

// lookup reads the namespace as Traefik does: IngressRoutes, then the slices of the Service that they name.
func (w *world) lookup(t testing.TB, h provider.Host, gateway string) (string, error) {
	for _, r := range []schema.GroupVersionResource{ingresses, tcps} {
		list, err := w.admin.Resource(r).Namespace(w.namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for _, o := range list.Items {
			routes, _, _ := unstructured.NestedSlice(o.Object, "spec", "routes")
			for _, entry := range routes {
				m := entry.(map[string]any)
				if found, ok := traefik.RuleHost(m["match"].(string)); ok && found == h {
					service := m["services"].([]any)[0].(map[string]any)
					scheme, _ := service["scheme"].(string)
					if r == tcps {
						scheme = "tcp"
					}
					return w.follow(t, scheme, service["name"].(string), gateway)
				}
			}
		}
	}
	return "", nil
}

func (w *world) follow(t testing.TB, scheme, service, gateway string) (string, error) {
	if _, err := w.admin.Resource(services).Namespace(w.namespace).Get(t.Context(), service, metav1.GetOptions{}); err != nil {
		return "", err
	}
	list, err := w.admin.Resource(slicesOf).Namespace(w.namespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil || len(list.Items) == 0 {
		return "", fmt.Errorf("service %s has no slice: %w", service, err)
	}
	o := list.Items[0].Object
	address := o["endpoints"].([]any)[0].(map[string]any)["addresses"].([]any)[0].(string)
	if address == gateway {
		address = "gateway"
	} else if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, address, o["ports"].([]any)[0].(map[string]any)["port"]), nil
}
