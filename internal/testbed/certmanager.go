package testbed

import (
	"os"
	"path/filepath"
	"testing"
)

// certManagerVersion is the one that test/certmanager/go.mod requires.
const certManagerVersion = "v1.21.2"

// certManager returns where test/certmanager/build has put it.
func certManager(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(cache(), "cert-manager-"+certManagerVersion)
	if _, err := os.Stat(dir); err != nil {
		missing(t, "needs cert-manager %s: test/certmanager/build builds it, the first time in some 3 minutes", certManagerVersion)
	}
	return dir
}

// DefineCertManager gives the API server the kinds of cert-manager, without anybody who acts on them.
func (k *KubernetesServer) DefineCertManager(t testing.TB) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(certManager(t), "crds", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("definitions of cert-manager: %d, %v", len(files), err)
	}
	for _, file := range files {
		k.ApplyFile(t, "", file)
	}
}

// CertManager runs cert-manager itself until the test ends, with a ClusterIssuer of this name, which is ca. Its kinds must be
// defined.
func (k *KubernetesServer) CertManager(t testing.TB, issuer string, ca *CA) {
	t.Helper()
	chain, key := EncodePEM(t, ca.Intermediate())
	k.Apply(t, "", Manifests(t, []byte(`{apiVersion: v1, kind: Namespace, metadata: {name: cert-manager}}`))...)
	k.TLSSecret(t, "cert-manager", issuer, chain, key)
	k.Apply(t, "", Manifests(t, []byte(`{apiVersion: cert-manager.io/v1, kind: ClusterIssuer, metadata: {name: `+issuer+`},
spec: {ca: {secretName: `+issuer+`}}}`))...)

	controller := &Process{
		binary: filepath.Join(certManager(t), "certmanager"), args: []string{k.Kubeconfig(t, k.Config())},
		log: &log{}, ready: func() bool { return true },
	}
	if err := controller.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		controller.Kill()
		if t.Failed() {
			t.Logf("cert-manager said:\n%s", controller.log)
		}
	})
}
