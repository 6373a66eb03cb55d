package certmanager_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/certmanager"
	"github.com/netsoc/webspaced/tlsprovider/issuertest"
)

func TestMain(m *testing.M) { testbed.Main(m) }

var (
	certificates = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	secrets      = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

// account makes the service account of the sample in deploy, and returns its client's configuration.
func account(t *testing.T, k *testbed.KubernetesServer, namespace string) *rest.Config {
	t.Helper()
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: webspaced}}`))...)
	k.ApplyFile(t, namespace, "../../deploy/kubernetes/rbac-certmanager.yaml")
	return k.AccountConfig(t, namespace, "webspaced")
}

// wire counts writes, and can be cut.
type wire struct {
	writes atomic.Int64
	away   atomic.Bool
}

func (w *wire) wrap(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if w.away.Load() {
				return nil, errors.New("the wire is cut")
			}
			if r.Method != http.MethodGet {
				w.writes.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	return config
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// standIn does what cert-manager would.
type standIn struct {
	certificates, secrets dynamic.ResourceInterface
}

func (s standIn) find(deployment string, host provider.Host) (*unstructured.Unstructured, error) {
	list, err := s.certificates.List(context.Background(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/instance=" + deployment})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		names, _, _ := unstructured.NestedStringSlice(list.Items[i].Object, "spec", "dnsNames")
		if len(names) == 1 && names[0] == host.String() {
			return &list.Items[i], nil
		}
	}
	return nil, fmt.Errorf("no Certificate of %s", host)
}

func (s standIn) setStatus(object *unstructured.Unstructured, status map[string]any) error {
	object.Object["status"] = status
	_, err := s.certificates.UpdateStatus(context.Background(), object, metav1.UpdateOptions{})
	return err
}

func condition(kind, status, message string) any {
	return map[string]any{"type": kind, "status": status, "reason": "Test", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
}

func (s standIn) issue(deployment string, host provider.Host) error {
	object, err := s.find(deployment, host)
	if err != nil {
		return err
	}
	name, _, _ := unstructured.NestedString(object.Object, "spec", "secretName")
	labels, _, _ := unstructured.NestedMap(object.Object, "spec", "secretTemplate", "labels")
	secret := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
		"metadata": map[string]any{"name": name, "labels": labels},
		"data":     map[string]any{"tls.crt": "", "tls.key": ""},
	}}
	if _, err := s.secrets.Apply(context.Background(), name, secret, metav1.ApplyOptions{FieldManager: "stand-in", Force: true}); err != nil {
		return err
	}
	return s.setStatus(object, map[string]any{"conditions": []any{condition("Ready", "True", "up to date")}})
}

func TestIssuer(t *testing.T) {
	k := testbed.Kubernetes(t)
	k.DefineCertManager(t)
	issuertest.Run(t, func(t *testing.T) issuertest.Harness {
		namespace := k.Namespace(t)
		client := k.Client(t)
		s := standIn{client.Resource(certificates).Namespace(namespace), client.Resource(secrets).Namespace(namespace)}
		w := &wire{}
		config := w.wrap(account(t, k, namespace))
		var foreign []string
		return issuertest.Harness{
			Open: func(deployment string) (tlsprovider.Issuer, error) {
				return certmanager.New(config, namespace, "ca", &certmanager.Options{Deployment: deployment, Timeout: 10 * time.Second})
			},
			Issue: s.issue,
			// Until it is issued the stand-in leaves it waiting, which is a problem to its owner.
			Fail:   func(string, provider.Host) error { return nil },
			Away:   func() func() { w.away.Store(true); return func() { w.away.Store(false) } },
			Writes: func() int { return int(w.writes.Load()) },
			WriteForeign: func(deployment string, host provider.Host) error {
				for _, name := range []string{deployment + "." + host.String(), "mine." + host.String()} {
					object := &unstructured.Unstructured{Object: map[string]any{
						"apiVersion": "cert-manager.io/v1", "kind": "Certificate",
						"metadata": map[string]any{"name": name, "labels": map[string]any{"app.kubernetes.io/instance": deployment}},
						"spec": map[string]any{
							"dnsNames": []any{host.String()}, "secretName": name, "issuerRef": map[string]any{"name": "theirs"},
						},
					}}
					if _, err := s.certificates.Create(context.Background(), object, metav1.CreateOptions{}); err != nil {
						return err
					}
					foreign = append(foreign, name)
				}
				return nil
			},
			ReadForeign: func() ([]byte, error) {
				var all []any
				for _, name := range foreign {
					object, err := s.certificates.Get(context.Background(), name, metav1.GetOptions{})
					if err != nil {
						return nil, err
					}
					all = append(all, object.Object)
				}
				return json.Marshal(all)
			},
		}
	})
}

func parseHost(t *testing.T, name string) provider.Host {
	t.Helper()
	host, err := provider.ParseHost(name)
	require.NoError(t, err)
	return host
}

// cert-manager would overwrite a Secret that somebody else keeps under the name.
func TestForeignSecret(t *testing.T) {
	k := testbed.Kubernetes(t)
	k.DefineCertManager(t)
	namespace := k.Namespace(t)
	theirs := k.Client(t).Resource(secrets).Namespace(namespace)
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`{apiVersion: v1, kind: Secret, metadata: {name: webspaced.a.example.org}}`))...)
	before, err := theirs.Get(t.Context(), "webspaced.a.example.org", metav1.GetOptions{})
	require.NoError(t, err)
	issuer, err := certmanager.New(account(t, k, namespace), namespace, "ca", nil)
	require.NoError(t, err)
	host := parseHost(t, "a.example.org")
	_, err = issuer.Order(t.Context(), tlsprovider.Order{Host: host, Owner: "ws-u1"})
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	require.NoError(t, issuer.Cancel(t.Context(), host))
	after, err := theirs.Get(t.Context(), "webspaced.a.example.org", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestPermissionDenied(t *testing.T) {
	k := testbed.Kubernetes(t)
	k.DefineCertManager(t)
	namespace := k.Namespace(t)
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: nobody}}`))...)
	issuer, err := certmanager.New(k.AccountConfig(t, namespace, "nobody"), namespace, "ca", nil)
	require.NoError(t, err)
	host := parseHost(t, "a.example.org")
	_, orderErr := issuer.Order(t.Context(), tlsprovider.Order{Host: host, Owner: "ws-u1"})
	_, listErr := issuer.Orders(t.Context())
	for _, err := range []error{orderErr, listErr, issuer.Cancel(t.Context(), host)} {
		require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	}
	// Rights that come later are enough.
	issuer, err = certmanager.New(account(t, k, namespace), namespace, "ca", nil)
	require.NoError(t, err)
	_, err = issuer.Order(t.Context(), tlsprovider.Order{Host: host, Owner: "ws-u1"})
	require.NoError(t, err)
}

// What somebody changed is set right; what they added stays.
func TestDrift(t *testing.T) {
	k := testbed.Kubernetes(t)
	k.DefineCertManager(t)
	namespace := k.Namespace(t)
	issuer, err := certmanager.New(account(t, k, namespace), namespace, "ca", &certmanager.Options{Kind: "Issuer"})
	require.NoError(t, err)
	order := tlsprovider.Order{Host: parseHost(t, "a.example.org"), Owner: "ws-u1"}
	_, err = issuer.Order(t.Context(), order)
	require.NoError(t, err)
	objects := k.Client(t).Resource(certificates).Namespace(namespace)
	object, err := objects.Get(t.Context(), "webspaced.a.example.org", metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, unstructured.SetNestedStringSlice(object.Object, []string{"evil.example.org"}, "spec", "dnsNames"))
	require.NoError(t, unstructured.SetNestedField(object.Object, "2160h", "spec", "duration"))
	_, err = objects.Update(t.Context(), object, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = issuer.Order(t.Context(), order)
	require.NoError(t, err)
	object, err = objects.Get(t.Context(), "webspaced.a.example.org", metav1.GetOptions{})
	require.NoError(t, err)
	names, _, _ := unstructured.NestedStringSlice(object.Object, "spec", "dnsNames")
	require.Equal(t, []string{"a.example.org"}, names)
	duration, _, _ := unstructured.NestedString(object.Object, "spec", "duration")
	require.Equal(t, "2160h", duration)
	kind, _, _ := unstructured.NestedString(object.Object, "spec", "issuerRef", "kind")
	require.Equal(t, "Issuer", kind)
}

// From an API server without cert-manager to a certificate that a client verifies, by cert-manager itself.
func TestCertManager(t *testing.T) {
	k := testbed.OwnKubernetes(t)
	namespace := k.Namespace(t)
	config := account(t, k, namespace)
	issuer, err := certmanager.New(config, namespace, "ca", nil)
	require.NoError(t, err)
	host := parseHost(t, "shop.example.org")
	order := tlsprovider.Order{Host: host, Owner: "ws-u1"}
	_, orderErr := issuer.Order(t.Context(), order)
	_, listErr := issuer.Orders(t.Context())
	for _, err := range []error{orderErr, listErr, issuer.Cancel(t.Context(), host)} {
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.ErrorContains(t, err, "is cert-manager installed?")
	}

	k.DefineCertManager(t)
	require.Eventually(t, func() bool {
		status, err := issuer.Order(t.Context(), order)
		return err == nil && status.Problem == "the certificate waits for cert-manager"
	}, time.Minute, 50*time.Millisecond)

	ca := testbed.NewCA(t, "the cluster's")
	k.CertManager(t, "ca", ca)
	var status tlsprovider.Status
	require.Eventually(t, func() bool {
		status, err = issuer.Order(t.Context(), order)
		return err == nil && status.Problem == ""
	}, time.Minute, 50*time.Millisecond)
	keeps := k.Client(t).Resource(secrets).Namespace(namespace)
	secret, err := keeps.Get(t.Context(), status.Certificate.Secret, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "webspaced", secret.GetLabels()["app.kubernetes.io/instance"])
	require.Equal(t, "shop.example.org", leaf(t, secret, ca).DNSNames[0])

	// One that can not be had takes no other down, and its owner is told.
	broken, err := certmanager.New(config, namespace, "absent", &certmanager.Options{Deployment: "broken"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		status, err := broken.Order(t.Context(), order)
		return err == nil && status.Problem != "" && status.Problem != "the certificate waits for cert-manager"
	}, time.Minute, 50*time.Millisecond)

	require.NoError(t, issuer.Cancel(t.Context(), host))
	_, err = keeps.Get(t.Context(), status.Certificate.Secret, metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "%v", err)
	orders, err := issuer.Orders(t.Context())
	require.NoError(t, err)
	require.Empty(t, orders)
}

func leaf(t *testing.T, secret *unstructured.Unstructured, ca *testbed.CA) *x509.Certificate {
	t.Helper()
	data, err := json.Marshal(secret.Object["data"])
	require.NoError(t, err)
	var files map[string][]byte
	require.NoError(t, json.Unmarshal(data, &files))
	pair, err := tls.X509KeyPair(files["tls.crt"], files["tls.key"])
	require.NoError(t, err)
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		certificate, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		intermediates.AddCert(certificate)
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool, Intermediates: intermediates, DNSName: "shop.example.org"})
	require.NoError(t, err)
	return pair.Leaf
}
