package testbed

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// kubernetesVersion is the one that test/kubernetes/go.mod requires.
const kubernetesVersion = "v1.36.3"

// KubernetesServer is an API server of Kubernetes on an etcd of its own, with no controller beside it: nothing acts on what
// is written to it, mirrors Endpoints or deletes what others owned. It authorises by RBAC.
type KubernetesServer struct {
	// Address is where the API server listens, for TLS, on the loopback. It stays the same over Restart.
	Address string
	// CA is the file with the certificate that its own is made out by.
	CA string
	// Etcd and API are the two programs, for a test's server of its own to be killed and frozen.
	Etcd, API *Process

	admin string
	dir   string
}

var sharedKubernetes struct {
	sync.Mutex
	server *KubernetesServer
}

// Kubernetes returns the API server that the tests of this binary share; each works in a namespace of its own. The first
// test that asks starts it, which takes some 10 seconds.
func Kubernetes(t testing.TB) *KubernetesServer {
	t.Helper()
	sharedKubernetes.Lock()
	defer sharedKubernetes.Unlock()
	if sharedKubernetes.server == nil {
		k := newKubernetes(t)
		AtEnd(k.stop)
		sharedKubernetes.server = k
	}
	return sharedKubernetes.server
}

// OwnKubernetes starts an API server for one test, with these flags besides its own. It ends with the test.
func OwnKubernetes(t testing.TB, flags ...string) *KubernetesServer {
	t.Helper()
	k := newKubernetes(t, flags...)
	t.Cleanup(func() {
		k.stop()
		if t.Failed() {
			t.Logf("the API server said:\n%s", k.API.log)
		}
	})
	return k
}

func newKubernetes(t testing.TB, flags ...string) *KubernetesServer {
	t.Helper()
	need(t, "etcd")
	binary := filepath.Join(cache(), "kube-apiserver-"+kubernetesVersion)
	if _, err := os.Stat(binary); err != nil {
		missing(t, "needs the Kubernetes API server %s: test/kubernetes/build builds it, the first time in some 5 minutes",
			kubernetesVersion)
	}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatal(err)
	}
	// Another process can take a port between our finding it and their listening on it.
	for range 3 {
		var k *KubernetesServer
		if k, err = prepareKubernetes(t, etcd, binary, flags); err == nil {
			if err = k.Etcd.start(); err == nil {
				if err = k.API.start(); err == nil {
					return k
				}
				t.Logf("the API server said:\n%s", k.API.log)
			}
			k.stop()
		}
	}
	t.Fatalf("no Kubernetes API server: %v", err)
	return nil
}

func prepareKubernetes(t testing.TB, etcd, binary string, flags []string) (*KubernetesServer, error) {
	dir, err := os.MkdirTemp("", "webspaced-kubernetes")
	if err != nil {
		return nil, err
	}
	addresses := Addresses(t, 3)
	k := &KubernetesServer{
		Address: addresses[0], CA: filepath.Join(dir, "certs", "apiserver.crt"),
		admin: secret(), dir: dir,
	}
	client, peer := "http://"+addresses[1], "http://"+addresses[2]
	k.Etcd = &Process{
		binary: etcd, dir: dir, log: &log{},
		args: []string{
			"--data-dir=" + filepath.Join(dir, "etcd"), "--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
		},
		ready: func() bool { return answers(http.DefaultClient, client+"/health", "") },
	}
	key, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens.csv")
	if err := writeRSAKey(key); err != nil {
		return k, err
	}
	if err := os.WriteFile(tokens, []byte(k.admin+`,admin,admin,"system:masters"`+"\n"), 0o600); err != nil {
		return k, err
	}
	_, port, _ := strings.Cut(k.Address, ":")
	k.API = &Process{
		binary: binary, dir: dir, log: &log{},
		args: append([]string{
			"--etcd-servers=" + client, "--bind-address=127.0.0.1", "--secure-port=" + port,
			"--cert-dir=" + filepath.Dir(k.CA), "--token-auth-file=" + tokens, "--authorization-mode=RBAC",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key,
			"--service-account-signing-key-file=" + key, "--service-cluster-ip-range=198.19.0.0/16",
			// It waits for a controller that gives each namespace its default account.
			"--disable-admission-plugins=ServiceAccount",
			// It would write Endpoints for itself with an address of this host.
			"--endpoint-reconciler-type=none",
		}, flags...),
	}
	k.API.ready = func() bool {
		transport, err := rest.TransportFor(k.Config())
		return err == nil && answers(&http.Client{Transport: transport, Timeout: 2 * time.Second}, "https://"+k.Address+"/readyz", k.admin)
	}
	return k, nil
}

func (k *KubernetesServer) stop() {
	k.API.Kill()
	k.Etcd.Kill()
	os.RemoveAll(k.dir)
}

// answers reports whether a GET is answered by 200.
func answers(client *http.Client, url, token string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// Config is a client's that may do everything.
func (k *KubernetesServer) Config() *rest.Config { return k.config(k.admin) }

// AccountConfig is a client's that may do what a service account may.
func (k *KubernetesServer) AccountConfig(t testing.TB, namespace, name string) *rest.Config {
	t.Helper()
	return k.config(k.Token(t, namespace, name))
}

func (k *KubernetesServer) config(token string) *rest.Config {
	return &rest.Config{
		Host: "https://" + k.Address, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: k.CA},
		// Tests wait for nothing but the server.
		QPS: -1, WarningHandler: rest.NoWarnings{},
	}
}

// Kubeconfig writes a client's configuration of this API server to a file, and returns its path.
func (k *KubernetesServer) Kubeconfig(t testing.TB, config *rest.Config) string {
	t.Helper()
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: it,
clusters: [{name: it, cluster: {server: %q, certificate-authority: %q}}], users: [{name: it, user: {token: %q}}],
contexts: [{name: it, context: {cluster: it, user: it}}]}`, config.Host, k.CA, config.BearerToken)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Client returns one that may do everything.
func (k *KubernetesServer) Client(t testing.TB) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(k.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Namespace makes a namespace and returns its name. No controller is there to delete it after the test.
func (k *KubernetesServer) Namespace(t testing.TB) string {
	t.Helper()
	name := "ns-" + secret()[:12]
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := k.Client(t).Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).
		Create(ctx, object, createOptions()); err != nil {
		t.Fatalf("namespace: %v", err)
	}
	return name
}

// secret is 128 random bits.
func secret() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func writeRSAKey(path string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
