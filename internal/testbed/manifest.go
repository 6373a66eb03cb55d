package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
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

// Manifest returns the path of a file of those that come with a Traefik for its users on Kubernetes, such as
// "kubernetes-crd-definition-v1.yml".
func (v TraefikVersion) Manifest(t testing.TB, name string) string {
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
