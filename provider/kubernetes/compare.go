package kubernetes

import (
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// diverting are the fields of a Service by which somebody could lead what is meant for a webspace elsewhere, or take
// somebody else's address for it.
var diverting = []string{"selector", "externalIPs", "externalName"}

// contents are the fields of an object besides its metadata.
var contents = []string{"spec", "addressType", "endpoints", "ports", "subsets"}

// stands reports whether an object says what is wanted. The API server fills in fields of its own kinds, which say nothing
// against it; Traefik's have to be equal.
func stands(k kind, have, want *unstructured.Unstructured) bool {
	if !contains(stringMap(have.GetLabels()), stringMap(want.GetLabels())) || have.GetDeletionTimestamp() != nil {
		return false
	}
	switch k {
	case ingressRoutes, ingressTCPs:
		return reflect.DeepEqual(have.Object["spec"], want.Object["spec"])
	case services:
		spec, _ := have.Object["spec"].(map[string]any)
		for _, field := range diverting {
			if spec[field] != nil {
				return false
			}
		}
	}
	for _, field := range contents {
		if want.Object[field] != nil && !contains(have.Object[field], want.Object[field]) {
			return false
		}
	}
	return true
}

// restore makes have, as it was read, say what is wanted and nothing against it.
func restore(k kind, have, want *unstructured.Unstructured) {
	if k == services {
		spec, _ := have.Object["spec"].(map[string]any)
		for _, field := range diverting {
			delete(spec, field)
		}
		wanted, _ := want.Object["spec"].(map[string]any)
		maps.Copy(spec, wanted)
		return
	}
	for _, field := range contents {
		if want.Object[field] != nil {
			have.Object[field] = want.Object[field]
		}
	}
}

// contains reports whether have has all that want has: lists as long as there, maps perhaps with more in them.
func contains(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		for name, value := range want {
			if !ok || !contains(h[name], value) {
				return false
			}
		}
		return true
	case []any:
		h, ok := have.([]any)
		return ok && slices.EqualFunc(h, want, contains)
	}
	return reflect.DeepEqual(have, want)
}

func stringMap(m map[string]string) map[string]any {
	all := make(map[string]any, len(m))
	for k, v := range m {
		all[k] = v
	}
	return all
}
