package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

// Labels of everything that is ours.
const (
	labelManagedBy  = "app.kubernetes.io/managed-by"
	labelDeployment = "app.kubernetes.io/instance"
	labelRoute      = "webspaced/route"

	manager = "webspaced" // value of labelManagedBy, and the field manager
)

// The kinds of objects. Their resources are their names in RBAC.
var (
	services       = kind{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "Service"}
	endpoints      = kind{schema.GroupVersionResource{Version: "v1", Resource: "endpoints"}, "Endpoints"}
	endpointSlices = kind{schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}, "EndpointSlice"}
	ingressRoutes  = kind{schema.GroupVersionResource{Group: "traefik.io", Version: "v1alpha1", Resource: "ingressroutes"}, "IngressRoute"}
	ingressTCPs    = kind{schema.GroupVersionResource{Group: "traefik.io", Version: "v1alpha1", Resource: "ingressroutetcps"}, "IngressRouteTCP"}
)

type kind struct {
	schema.GroupVersionResource
	name string
}

// key is an object's place.
type key struct {
	kind kind
	name string
}

// objects are those of one route.
type objects map[key]*unstructured.Unstructured

// mapping is how one deployment says its routes. Nothing in it comes from users.
type mapping struct {
	deployment    string
	http, https   string // entry points
	defaultSecret string
	gateway       string // Service
	gatewayHost   string
	kinds         []kind // in the order in which they are written
}

func newMapping(opts *Options) (mapping, error) {
	check := traefik.Mapping{
		Deployment: first(opts.Deployment, "webspaced"), HTTPEntryPoint: opts.HTTPEntryPoint, HTTPSEntryPoint: opts.HTTPSEntryPoint,
	}
	if err := check.Validate(); err != nil {
		return mapping{}, err
	}
	if opts.DefaultSecret != "" && opts.HTTPSEntryPoint == "" {
		return mapping{}, fmt.Errorf("default secret without HTTPS entry point: %w", errdefs.ErrInvalidArgument)
	}
	if opts.GatewayService != "" && !provider.IsLabel(opts.GatewayService) {
		return mapping{}, fmt.Errorf("gateway service %q is not a DNS label: %w", opts.GatewayService, errdefs.ErrInvalidArgument)
	}
	if opts.GatewayHost != "" && opts.GatewayService == "" {
		return mapping{}, fmt.Errorf("gateway host without gateway service: %w", errdefs.ErrInvalidArgument)
	}
	m := mapping{
		deployment: check.Deployment, http: opts.HTTPEntryPoint, https: opts.HTTPSEntryPoint, defaultSecret: opts.DefaultSecret,
		gateway: opts.GatewayService, gatewayHost: first(opts.GatewayHost, opts.GatewayService),
		kinds: []kind{services, endpointSlices, ingressRoutes, ingressTCPs},
	}
	if opts.Endpoints {
		m.kinds = slices.Insert(m.kinds, 1, endpoints)
	}
	return m, nil
}

// base begins the names of a route's objects, and is the name of its Service: a label, however long the route's name is, and
// another one for each route of each deployment.
func (m mapping) base(route string) string {
	// Labels have no dots: no two pairs of deployment and route are joined to one text.
	return "route-" + route[:min(len(route), 40)] + "-" + digest(m.deployment+"."+route)
}

// digest keeps apart what it is made of: 48 bits, of what nobody but the operator and the identity provider name.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// portName joins a Service's port to that of its slice.
const portName = "web"

// objects returns those of a route.
func (m mapping) objects(r provider.Route, gateway gateway) (objects, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	for _, c := range r.Certificates {
		if c.Chain != "" {
			return nil, fmt.Errorf("a certificate comes from a Secret here, and that of %s is none: %w", c.Host, errdefs.ErrInvalidArgument)
		}
		if m.https == "" {
			return nil, fmt.Errorf("certificate of %s, but there is no entry point for HTTPS: %w", c.Host, errdefs.ErrInvalidArgument)
		}
	}
	to, err := m.target(r.Backend, gateway)
	if err != nil {
		return nil, err
	}
	all := objects{}
	base := m.base(r.Name)
	add := func(k kind, name string, labels, content map[string]any) {
		labels[labelManagedBy], labels[labelDeployment], labels[labelRoute] = manager, m.deployment, r.Name
		content["apiVersion"], content["kind"] = k.GroupVersion().String(), k.name
		content["metadata"] = map[string]any{"name": name, "labels": labels}
		all[key{k, name}] = &unstructured.Unstructured{Object: content}
	}

	add(services, base, map[string]any{}, map[string]any{"spec": map[string]any{
		"clusterIP": "None", // they need none, and a cluster has only so many
		"ports":     []any{map[string]any{"name": portName, "port": int64(80), "protocol": "TCP"}},
	}})
	port := map[string]any{"name": portName, "port": to.port, "protocol": "TCP"}
	family := map[bool]string{true: "IPv4", false: "IPv6"}[to.addr.Is4()]
	add(endpointSlices, base+"-"+map[bool]string{true: "ipv4", false: "ipv6"}[to.addr.Is4()], map[string]any{
		"kubernetes.io/service-name":             base,
		"endpointslice.kubernetes.io/managed-by": manager,
	}, map[string]any{
		"addressType": family,
		"endpoints":   []any{map[string]any{"addresses": []any{to.addr.String()}, "conditions": map[string]any{"ready": true}}},
		"ports":       []any{port},
	})
	if slices.Contains(m.kinds, endpoints) {
		add(endpoints, base, map[string]any{
			"endpointslice.kubernetes.io/skip-mirror": "true", // there is a slice already
		}, map[string]any{"subsets": []any{map[string]any{
			"addresses": []any{map[string]any{"ip": to.addr.String()}}, "ports": []any{port},
		}}})
	}
	m.ingress(r, base, to.scheme, add)
	return all, nil
}

// ingress adds what says which hosts lead to the Service.
func (m mapping) ingress(r provider.Route, base, scheme string, add func(k kind, name string, labels, content map[string]any)) {
	spec := func(entryPoint string, rule func(provider.Host) string, hosts []provider.Host, tls map[string]any) map[string]any {
		service := map[string]any{"name": base, "port": portName}
		if scheme != "tcp" {
			service["scheme"], service["passHostHeader"] = scheme, true
		}
		var routes []any
		for _, h := range hosts {
			route := map[string]any{"match": rule(h), "priority": int64(traefik.Priority), "services": []any{service}}
			if scheme != "tcp" {
				route["kind"] = "Rule"
			}
			routes = append(routes, route)
		}
		s := map[string]any{"routes": routes}
		if entryPoint != "" {
			s["entryPoints"] = []any{entryPoint}
		}
		if tls != nil {
			s["tls"] = tls
		}
		return map[string]any{"spec": s}
	}
	if scheme == "tcp" {
		add(ingressTCPs, base+"-tls", map[string]any{},
			spec(m.https, traefik.HostSNIRule, r.Hosts, map[string]any{"passthrough": true}))
		return
	}
	add(ingressRoutes, base+"-http", map[string]any{}, spec(m.http, traefik.HostRule, r.Hosts, nil))
	if m.https == "" {
		return
	}
	var others []provider.Host
	for _, h := range r.Hosts {
		tls := map[string]any{}
		switch c := r.Certificate(h); {
		case c.Secret != "":
			tls["secretName"] = c.Secret
		case c.Resolver != "":
			tls["certResolver"] = c.Resolver
		default:
			others = append(others, h)
			continue
		}
		add(ingressRoutes, base+"-https-"+digest(h.String()), map[string]any{}, spec(m.https, traefik.HostRule, []provider.Host{h}, tls))
	}
	if len(others) == 0 {
		return
	}
	tls := map[string]any{}
	if m.defaultSecret != "" {
		tls["secretName"] = m.defaultSecret
	}
	add(ingressRoutes, base+"-https", map[string]any{}, spec(m.https, traefik.HostRule, others, tls))
}

// route reads objects as the route of that name; one without backend if they are not just those of a route.
func (m mapping) route(name string, have objects, gateway gateway) provider.Route {
	r := provider.Route{Name: name}
	base := m.base(name)
	t := target{scheme: "tcp"}
	for k, object := range have {
		switch k.kind {
		case endpointSlices:
			t.addr, t.port = slice(object.Object)
		case ingressRoutes, ingressTCPs:
			routes, _, _ := unstructured.NestedSlice(object.Object, "spec", "routes")
			hosts := hosts(routes)
			r.Hosts = append(r.Hosts, hosts...)
			if k.kind == ingressTCPs {
				continue
			}
			t.scheme = scheme(routes)
			if len(hosts) == 1 && k.name == base+"-https-"+digest(hosts[0].String()) {
				c := provider.Certificate{Host: hosts[0]}
				c.Secret, _, _ = unstructured.NestedString(object.Object, "spec", "tls", "secretName")
				c.Resolver, _, _ = unstructured.NestedString(object.Object, "spec", "tls", "certResolver")
				r.Certificates = append(r.Certificates, c)
			}
		}
	}
	slices.SortFunc(r.Hosts, provider.Host.Compare)
	r.Hosts = slices.Compact(r.Hosts)
	slices.SortFunc(r.Certificates, func(a, b provider.Certificate) int { return a.Host.Compare(b.Host) })
	r.Backend = m.backend(t, gateway)
	want, err := m.objects(r, gateway)
	if err != nil || !stand(have, want) {
		return provider.Route{Name: name}
	}
	return r
}

// slice returns what an EndpointSlice leads to.
func slice(object map[string]any) (netip.Addr, int64) {
	endpoints, _, _ := unstructured.NestedSlice(object, "endpoints")
	ports, _, _ := unstructured.NestedSlice(object, "ports")
	if len(endpoints) != 1 || len(ports) != 1 {
		return netip.Addr{}, 0
	}
	endpoint, _ := endpoints[0].(map[string]any)
	addresses, _, _ := unstructured.NestedStringSlice(endpoint, "addresses")
	port, _ := ports[0].(map[string]any)
	number, _, _ := unstructured.NestedInt64(port, "port")
	if len(addresses) != 1 {
		return netip.Addr{}, 0
	}
	addr, _ := netip.ParseAddr(addresses[0])
	return addr, number
}

func hosts(routes []any) (all []provider.Host) {
	for _, route := range routes {
		r, _ := route.(map[string]any)
		rule, _ := r["match"].(string)
		if host, ok := traefik.RuleHost(rule); ok {
			all = append(all, host)
		}
	}
	return all
}

// scheme of the first service.
func scheme(routes []any) string {
	if len(routes) == 0 {
		return ""
	}
	r, _ := routes[0].(map[string]any)
	services, _, _ := unstructured.NestedSlice(r, "services")
	if len(services) == 0 {
		return ""
	}
	service, _ := services[0].(map[string]any)
	s, _ := service["scheme"].(string)
	return s
}
