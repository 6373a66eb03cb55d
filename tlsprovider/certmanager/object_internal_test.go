package certmanager

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

func newIssuer(t *testing.T, deployment string) *Issuer {
	t.Helper()
	issuer, err := New(&rest.Config{Host: "https://127.0.0.1:1"}, "webspaces", "ca", &Options{Deployment: deployment})
	require.NoError(t, err)
	return issuer
}

// Names are valid, of one host each, and tell it again.
func TestObjectNames(t *testing.T) {
	longest := strings.Repeat("a.", 125) + "org"
	require.Len(t, longest, 253)
	label := strings.Repeat("x", 63)
	seen := map[string]string{}
	for _, deployment := range []string{"a", "a-b", label} {
		issuer := newIssuer(t, deployment)
		for _, name := range []string{
			"b.org", "a.b.org", "b.a.b.org", "b-org.org", longest, "b" + longest[1:], longest[2:], label + "." + label + "." + label + ".org",
			label + "." + label + "." + label + "." + label[:61],
		} {
			host, err := provider.ParseHost(name)
			require.NoError(t, err)
			object := issuer.certificate(tlsprovider.Order{Host: host, Owner: "ws-u1"})
			require.NoError(t, provider.Certificate{Host: host, Secret: object.GetName()}.Validate())
			require.Empty(t, seen[object.GetName()], "%s of %s", name, deployment)
			seen[object.GetName()] = deployment + " " + name
			got, ok := issuer.hostOf(object)
			require.True(t, ok)
			require.Equal(t, host, got)
			object.SetAnnotations(map[string]string{hostAnnotation: "victim.example.org"})
			if got, ok = issuer.hostOf(object); ok {
				require.Equal(t, host, got)
			}
		}
	}
}

func TestProblem(t *testing.T) {
	type m = map[string]any
	condition := func(kind, status, message string) any { return m{"type": kind, "status": status, "message": message} }
	for _, test := range []struct {
		name   string
		status m
		want   string
	}{
		{"nothing", nil, "the certificate waits for cert-manager"},
		{"ready", m{"conditions": []any{condition("Ready", "True", "up to date")}}, ""},
		{"renewing", m{"conditions": []any{condition("Ready", "True", ""), condition("Issuing", "True", "")}}, ""},
		{"issuing", m{"conditions": []any{condition("Ready", "False", "no Secret"), condition("Issuing", "True", "")}}, "the certificate is being obtained"},
		{"not ready", m{"conditions": []any{condition("Ready", "False", "no Secret")}}, "the certificate is not there yet: no Secret"},
		{"failed", m{"lastFailureTime": "2026-01-01T00:00:00Z", "conditions": []any{condition("Ready", "False", ""), condition("Issuing", "False", "DNS\nsays\x1b no")}},
			"the certificate could not be obtained, which is tried again: DNS says? no"},
		{"not renewed", m{"lastFailureTime": "2026-01-01T00:00:00Z", "conditions": []any{condition("Ready", "True", ""), condition("Issuing", "False", "")}},
			"the certificate can not be renewed, which is tried again: cert-manager does not say why"},
		{"strange", m{"conditions": []any{7, nil, m{"type": m{}}}}, "the certificate waits for cert-manager"},
	} {
		t.Run(test.name, func(t *testing.T) {
			object := m{}
			if test.status != nil {
				object["status"] = test.status
			}
			require.Equal(t, test.want, problem(&unstructured.Unstructured{Object: object}))
		})
	}
}
