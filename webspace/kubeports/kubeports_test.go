package kubeports_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace/kubeports"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// open is a forwarder whose ports are open at once.
type open struct {
	mu    sync.Mutex
	ports map[int]bool
}

func (o *open) set(port int, is bool) { o.mu.Lock(); defer o.mu.Unlock(); o.ports[port] = is }

func (o *open) Forward(port int, _ proxy.Target) { o.set(port, true) }
func (o *open) Unforward(port int)               { o.set(port, false) }
func (o *open) Status(port int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ports[port] {
		return fmt.Errorf("port %d: %w", port, errdefs.ErrNotFound)
	}
	return nil
}

type cluster struct {
	*testing.T
	*testbed.KubernetesServer
	namespace string
	config    *rest.Config
	services  dynamic.ResourceInterface
}

func newCluster(t *testing.T) *cluster {
	k := testbed.Kubernetes(t)
	namespace := k.Namespace(t)
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: webspaced}}`))...)
	k.ApplyFile(t, namespace, "../../deploy/kubernetes/rbac-ports.yaml")
	return &cluster{t, k, namespace, k.AccountConfig(t, namespace, "webspaced"),
		k.Client(t).Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).Namespace(namespace)}
}

// service makes the Service, with three ports that are not ours.
func (c *cluster) service() {
	c.Apply(c.T, c.namespace, testbed.Manifests(c.T, []byte(`
apiVersion: v1
kind: Service
metadata: {name: webspaced-ports, annotations: {example.org/note: theirs}}
spec:
  type: NodePort
  ports:
  - {name: web, port: 80, targetPort: http}
  - {name: dns, port: 53, protocol: UDP}
  - {name: game, port: 50500, targetPort: 7}
`))...)
}

// run runs a forwarder until the returned function is called.
func (c *cluster) run(deployment string, synced chan struct{}) (*kubeports.Forwarder, func()) {
	c.Helper()
	f, err := kubeports.New(&open{ports: map[int]bool{}}, c.config, c.namespace, "webspaced-ports", &kubeports.Options{
		Deployment: deployment, Batch: time.Millisecond, Settle: time.Millisecond,
	})
	require.NoError(c, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx, synced) })
	stop := func() { cancel(); wg.Wait() }
	c.Cleanup(stop)
	return f, stop
}

// ports returns ours by number, and all others as text.
func (c *cluster) ports() (ours map[int]map[string]any, others string) {
	c.Helper()
	object, err := c.services.Get(c.Context(), "webspaced-ports", metav1.GetOptions{})
	require.NoError(c, err)
	list, _, _ := unstructured.NestedSlice(object.Object, "spec", "ports")
	ours = map[int]map[string]any{}
	var rest []any
	for _, p := range list {
		port := p.(map[string]any)
		if strings.HasPrefix(port["name"].(string), "ws-fwd-") {
			ours[int(port["port"].(int64))] = port
		} else {
			rest = append(rest, port)
		}
	}
	text, err := json.Marshal(rest)
	require.NoError(c, err)
	return ours, string(text)
}

func (c *cluster) eventually(what string, is func() bool) {
	c.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !is() {
		require.True(c, time.Now().Before(deadline), what)
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *cluster) has(f *kubeports.Forwarder, ports ...int) {
	c.Helper()
	for _, port := range ports {
		c.eventually(fmt.Sprintf("port %d is not there", port), func() bool { return f.Status(port) == nil })
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

var target = proxy.Target{Webspace: "ws-u1", Port: 22}

func TestForeignPortsStay(t *testing.T) {
	c := newCluster(t)
	c.service()
	_, before := c.ports()
	f, _ := c.run("one", closed())
	f.Forward(50001, target)
	c.has(f, 50001)
	kept, _ := c.ports()
	f.Forward(50500, target)
	c.eventually("no conflict", func() bool { return errdefs.IsAlreadyExists(f.Status(50500)) })

	const rounds, each = 100, 10
	for round := range rounds {
		for n := range each {
			f.Forward(51000+round*each+n, target)
		}
		for n := range each {
			c.has(f, 51000+round*each+n)
		}
		ours, others := c.ports()
		require.Equal(t, before, others)
		require.Len(t, ours, 1+each)
		require.Equal(t, kept[50001], ours[50001], "its node port too")
		for n := range each {
			f.Unforward(51000 + round*each + n)
		}
		c.eventually("ports stay", func() bool {
			ours, others = c.ports()
			require.Equal(t, before, others)
			return len(ours) == 1
		})
	}
	object, err := c.services.Get(t.Context(), "webspaced-ports", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "theirs", object.GetAnnotations()["example.org/note"])
	_, found, _ := unstructured.NestedFieldNoCopy(object.Object, "spec", "externalIPs")
	require.False(t, found)
}

func TestPortsOutliveTheDaemon(t *testing.T) {
	c := newCluster(t)
	c.service()
	f, stop := c.run("one", closed())
	f.Forward(50001, target)
	f.Forward(50002, target)
	c.has(f, 50001, 50002)
	before, _ := c.ports()
	stop()

	synced := make(chan struct{})
	f, _ = c.run("one", synced)
	f.Forward(50003, target)
	c.has(f, 50003) // it has been written, and what is not known yet stays
	ours, _ := c.ports()
	require.Len(t, ours, 3)
	f.Forward(50001, target)
	close(synced)
	c.eventually("what nobody wants stays", func() bool { ours, _ = c.ports(); return len(ours) == 2 })
	require.Equal(t, before[50001], ours[50001])
	require.NotNil(t, ours[50003])
}

func TestTwoDeployments(t *testing.T) {
	c := newCluster(t)
	c.service()
	one, _ := c.run("one", closed())
	one.Forward(50001, target)
	c.has(one, 50001)
	two, stop := c.run("two", closed())
	two.Forward(50001, target)
	two.Forward(50002, target)
	c.has(two, 50002)
	require.True(t, errdefs.IsAlreadyExists(two.Status(50001)))
	two.Unforward(50001)
	two.Unforward(50002)
	c.eventually("its port stays", func() bool { ours, _ := c.ports(); return len(ours) == 1 })
	require.NoError(t, one.Status(50001))
	stop()
}

func TestDriftIsRepaired(t *testing.T) {
	c := newCluster(t)
	c.service()
	f, _ := c.run("one", closed())
	f.Forward(50001, target)
	c.has(f, 50001)
	before, others := c.ports()
	for _, change := range []func(ports []any) []any{
		func(ports []any) []any { return ports[:3] },
		func(ports []any) []any { ports[3].(map[string]any)["targetPort"] = int64(1); return ports },
	} {
		c.eventually("conflicts", func() bool {
			object, err := c.services.Get(t.Context(), "webspaced-ports", metav1.GetOptions{})
			require.NoError(t, err)
			ports, _, _ := unstructured.NestedSlice(object.Object, "spec", "ports")
			require.Len(t, ports, 4)
			require.NoError(t, unstructured.SetNestedSlice(object.Object, change(ports), "spec", "ports"))
			_, err = c.services.Update(t.Context(), object, metav1.UpdateOptions{})
			return err == nil
		})
		c.eventually("not repaired", func() bool {
			ours, now := c.ports()
			require.Equal(t, others, now)
			return len(ours) == 1 && ours[50001]["targetPort"] == before[50001]["targetPort"]
		})
	}
}

func TestMissingService(t *testing.T) {
	c := newCluster(t)
	f, _ := c.run("one", closed())
	f.Forward(50001, target)
	c.eventually("not told", func() bool { return errdefs.IsFailedPrecondition(f.Status(50001)) })
	require.ErrorContains(t, f.Status(50001), "there is no Service webspaced-ports in namespace "+c.namespace)
	c.service()
	c.has(f, 50001)
	require.NoError(t, c.services.Delete(t.Context(), "webspaced-ports", metav1.DeleteOptions{}))
	c.eventually("not told", func() bool { return errdefs.IsFailedPrecondition(f.Status(50001)) })
	c.service()
	c.has(f, 50001)
}
