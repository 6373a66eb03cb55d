package certmanager

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

const (
	managedByLabel = "app.kubernetes.io/managed-by"
	instanceLabel  = "app.kubernetes.io/instance"
	managedBy      = "webspaced"
	ownerLabel     = "webspaced/owner"
	hostAnnotation = "webspaced/host" // a label has 63 bytes at most, a host 253
)

func (i *Issuer) manager() string { return managedBy + "-" + i.opts.Deployment }

func (i *Issuer) selector() string {
	return managedByLabel + "=" + managedBy + "," + instanceLabel + "=" + i.opts.Deployment
}

func (i *Issuer) owns(object metav1.Object) bool {
	labels := object.GetLabels()
	return labels[managedByLabel] == managedBy && labels[instanceLabel] == i.opts.Deployment
}

// objectName is what the Certificate of a host and its Secret are called: the deployment, a dot and the host. Where that
// is longer than names can be, a digest stands for the host, which has no dot, and so is no other host.
func (i *Issuer) objectName(host provider.Host) string {
	name := i.opts.Deployment + "." + host.String()
	if len(name) <= 253 {
		return name
	}
	digest := sha256.Sum256([]byte(host.String()))
	return i.opts.Deployment + "." + hex.EncodeToString(digest[:31]) // of 63 characters, a label's most
}

// hostOf returns the host of a Certificate of ours. Where it is written down may have been edited; the name can not.
func (i *Issuer) hostOf(object *unstructured.Unstructured) (provider.Host, bool) {
	name := strings.TrimPrefix(object.GetName(), i.opts.Deployment+".")
	for _, candidate := range []string{name, object.GetAnnotations()[hostAnnotation]} {
		if host, err := provider.ParseHost(candidate); err == nil && i.objectName(host) == object.GetName() {
			return host, true
		}
	}
	return provider.Host{}, false
}

// certificate is what we say in the Certificate of an order.
func (i *Issuer) certificate(order tlsprovider.Order) *unstructured.Unstructured {
	name := i.objectName(order.Host)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": certificates.GroupVersion().String(),
		"kind":       "Certificate",
		"metadata": map[string]any{
			"name":        name,
			"namespace":   i.namespace,
			"labels":      map[string]any{managedByLabel: managedBy, instanceLabel: i.opts.Deployment, ownerLabel: order.Owner},
			"annotations": map[string]any{hostAnnotation: order.Host.String()},
		},
		"spec": map[string]any{
			// No common name: it has 64 bytes at most.
			"dnsNames":       []any{order.Host.String()},
			"secretName":     name,
			"secretTemplate": map[string]any{"labels": map[string]any{managedByLabel: managedBy, instanceLabel: i.opts.Deployment}},
			"issuerRef":      map[string]any{"group": certificates.Group, "kind": i.opts.Kind, "name": i.issuer},
			"privateKey":     map[string]any{"algorithm": "ECDSA", "size": int64(256), "rotationPolicy": "Always"},
		},
	}}
}

// problem tells the owner of a host why its Certificate is not all it should be.
func problem(certificate *unstructured.Unstructured) string {
	status, _ := certificate.Object["status"].(map[string]any)
	list, _ := status["conditions"].([]any)
	conditions := map[string]map[string]any{}
	for _, c := range list {
		condition, _ := c.(map[string]any)
		kind, _ := condition["type"].(string)
		conditions[kind] = condition
	}
	ready, issuing := conditions["Ready"], conditions["Issuing"]
	isReady := ready["status"] == "True"
	switch {
	case status["lastFailureTime"] != nil && isReady: // it is cleared by the next success
		return "the certificate can not be renewed, which is tried again: " + message(issuing)
	case status["lastFailureTime"] != nil:
		return "the certificate could not be obtained, which is tried again: " + message(issuing)
	case isReady:
		return ""
	case issuing["status"] == "True":
		return "the certificate is being obtained"
	case ready != nil:
		return "the certificate is not there yet: " + message(ready)
	}
	return "the certificate waits for cert-manager"
}

// message is what cert-manager says of a condition, which may have come from a certificate authority.
func message(condition map[string]any) string {
	text, _ := condition["message"].(string)
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if text == "" {
		return "cert-manager does not say why"
	}
	if len(text) > 400 {
		text = strings.ToValidUTF8(text[:400], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
}
