package testbed

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// Manifests reads the objects of YAML or JSON documents.
func Manifests(t testing.TB, documents []byte) []*unstructured.Unstructured {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("manifest: %v", err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Apply makes these objects, or changes those that are there, as kubectl apply does; those in a namespace in this one,
// whatever they say. When it returns, the kinds that they define can be used.
func (k *KubernetesServer) Apply(t testing.TB, namespace string, objects ...*unstructured.Unstructured) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	finder, err := discovery.NewDiscoveryClientForConfig(k.Config())
	if err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(finder)
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client := k.Client(t)
	for _, object := range objects {
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			t.Fatalf("%s %s: %v", kind.Kind, object.GetName(), err)
		}
		var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
		if mapping.Scope.Name() == "namespace" {
			object.SetNamespace(namespace)
			resource = client.Resource(mapping.Resource).Namespace(namespace)
		}
		if _, err := resource.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
			t.Fatalf("%s %s: %v", kind.Kind, object.GetName(), err)
		}
	}
	for _, object := range objects {
		if object.GetKind() == "CustomResourceDefinition" {
			k.established(ctx, t, object.GetName())
		}
	}
}

// ApplyFile is Apply for the objects in a file. One that speaks of the namespace "webspaces", as those in deploy do, means
// this one.
func (k *KubernetesServer) ApplyFile(t testing.TB, namespace, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("namespace: webspaces\n"), []byte("namespace: "+namespace+"\n"))
	k.Apply(t, namespace, Manifests(t, text)...)
}

// TLSSecret makes a Secret with a certificate and its key.
func (k *KubernetesServer) TLSSecret(t testing.TB, namespace, name, chain, key string) {
	t.Helper()
	k.Apply(t, namespace, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": map[string]any{"name": name},
		"data": map[string]any{
			"tls.crt": base64.StdEncoding.EncodeToString([]byte(chain)), "tls.key": base64.StdEncoding.EncodeToString([]byte(key)),
		},
	}})
}

// established waits until the kind can be used.
func (k *KubernetesServer) established(ctx context.Context, t testing.TB, name string) {
	t.Helper()
	definitions := k.Client(t).Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	for {
		object, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatalf("definition %s: %v", name, err)
		}
		conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
		for _, condition := range conditions {
			if c, _ := condition.(map[string]any); c["type"] == "Established" && c["status"] == "True" {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("definition %s is not established", name)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Token returns one of a service account, good for an hour.
func (k *KubernetesServer) Token(t testing.TB, namespace, account string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := kubernetes.NewForConfig(k.Config())
	if err != nil {
		t.Fatal(err)
	}
	seconds := int64(3600)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, createOptions())
	if err != nil {
		t.Fatalf("token of %s: %v", account, err)
	}
	return answer.Status.Token
}

// TraefikFlags have a Traefik follow its custom resources in a namespace, without a wait for more changes to come.
func (k *KubernetesServer) TraefikFlags(namespace string) []string {
	return []string{
		"--providers.kubernetescrd=true", "--providers.kubernetescrd.endpoint=https://" + k.Address,
		"--providers.kubernetescrd.certauthfilepath=" + k.CA, "--providers.kubernetescrd.namespaces=" + namespace,
		"--providers.kubernetescrd.token=" + k.admin, "--providers.kubernetescrd.throttleduration=10ms",
	}
}

// DefineTraefik gives the API server the kinds of a Traefik.
func (k *KubernetesServer) DefineTraefik(t testing.TB, version TraefikVersion) {
	t.Helper()
	k.ApplyFile(t, "", version.manifest(t, "kubernetes-crd-definition-v1.yml"))
}

// manifest returns the path of a file of those that come with a Traefik for its users on Kubernetes.
func (v TraefikVersion) manifest(t testing.TB, name string) string {
	t.Helper()
	major, _, _ := strings.Cut(string(v), ".")
	module := "github.com/traefik/traefik/" + major
	_, here, _, _ := runtime.Caller(0)
	list := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	list.Dir = filepath.Join(filepath.Dir(here), "..", "..", "test", "traefik", major)
	out, err := list.Output()
	if err != nil {
		missing(t, "needs the source of %s: %v", module, err)
	}
	var found struct{ Dir string }
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(found.Dir, "docs", "content", "reference", "dynamic-configuration", name)
}

func createOptions() metav1.CreateOptions { return metav1.CreateOptions{} }
