package testbed_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/netsoc/webspaced/internal/testbed"
)

func TestKubernetes(t *testing.T) {
	k := testbed.OwnKubernetes(t)
	namespace := k.Namespace(t)
	k.DefineTraefik(t, testbed.TraefikV3)
	k.Apply(t, namespace, testbed.Manifests(t, []byte(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [traefik.io], resources: [ingressroutes], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
`))...)
	reader, err := dynamic.NewForConfig(k.AccountConfig(t, namespace, "reader"))
	require.NoError(t, err)
	routes := reader.Resource(schema.GroupVersionResource{Group: "traefik.io", Version: "v1alpha1", Resource: "ingressroutes"})
	for range 2 {
		list, err := routes.Namespace(namespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		require.Empty(t, list.Items)
		_, err = routes.Namespace("default").List(t.Context(), metav1.ListOptions{})
		require.True(t, errors.IsForbidden(err), "%v", err)
		k.API.Kill()
		k.Etcd.Restart(t)
		k.API.Restart(t)
	}
}
