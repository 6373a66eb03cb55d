// Package certmanager has cert-manager obtain certificates: one object of kind Certificate for each host, and the Secret
// that cert-manager fills for it, which routes refer to.
//
//	issuer, err := certmanager.New(config, "webspaces", "letsencrypt", nil)
//
// The namespace has to be that of the routes. What may be asked of the API server is in deploy/kubernetes/rbac-certmanager.yaml.
package certmanager

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Options are what may differ between issuers. The zero value of each is its default.
type Options struct {
	// Deployment marks what is ours: deployments of different names can share a namespace. A DNS label ["webspaced"].
	Deployment string
	// Kind of the issuer that signs, Issuer or ClusterIssuer [ClusterIssuer].
	Kind string
	// Timeout bounds each call, with all its requests [15 s].
	Timeout time.Duration
}

// Issuer orders certificates from cert-manager. It implements [tlsprovider.Issuer] and [tlsprovider.Watcher].
//
// An order is in the API server alone: it is renewed while webspaced is away. Cancel deletes its Certificate and then its
// Secret. If the daemon is killed between the two, the Secret stays, unused, until its host is ordered and cancelled again.
type Issuer struct {
	certificates dynamic.ResourceInterface
	client       dynamic.Interface
	secrets      metadata.ResourceInterface // their keys are nothing that we want to see
	namespace    string
	issuer       string
	opts         Options
}

var (
	_ tlsprovider.Issuer  = (*Issuer)(nil)
	_ tlsprovider.Watcher = (*Issuer)(nil)
)

var (
	certificates = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	secrets      = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

// New returns an Issuer whose certificates are signed by the named issuer of cert-manager. It asks nothing of the API server,
// which may be away. Errors are InvalidArgument. Without a QPS in config there are 50 requests a second at most.
func New(config *rest.Config, namespace, issuer string, opts *Options) (*Issuer, error) {
	i := &Issuer{namespace: namespace, issuer: issuer}
	if opts != nil {
		i.opts = *opts
	}
	if i.opts.Deployment == "" {
		i.opts.Deployment = "webspaced"
	}
	if i.opts.Kind == "" {
		i.opts.Kind = "ClusterIssuer"
	}
	if i.opts.Timeout <= 0 {
		i.opts.Timeout = 15 * time.Second
	}
	switch {
	case !provider.IsLabel(namespace):
		return nil, invalid("namespace %q is not a DNS label", namespace)
	case issuer == "":
		return nil, invalid("cert-manager's issuer has no name")
	case !provider.IsLabel(i.opts.Deployment):
		return nil, invalid("deployment %q is not a DNS label", i.opts.Deployment)
	case i.opts.Kind != "ClusterIssuer" && i.opts.Kind != "Issuer":
		return nil, invalid("kind %q is neither ClusterIssuer nor Issuer", i.opts.Kind)
	}
	config = rest.CopyConfig(config)
	if config.QPS == 0 && config.RateLimiter == nil {
		config.QPS, config.Burst = 50, 100
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, invalid("API server: %v", err)
	}
	metadataClient, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, invalid("API server: %v", err)
	}
	i.client = client
	i.certificates = client.Resource(certificates).Namespace(namespace)
	i.secrets = metadataClient.Resource(secrets).Namespace(namespace)
	return i, nil
}

// Order implements [tlsprovider.Issuer]. Nothing is written if the Certificate says what it should, and one that somebody
// changed is set right. The status refers to its Secret before cert-manager has filled it.
func (i *Issuer) Order(ctx context.Context, order tlsprovider.Order) (tlsprovider.Status, error) {
	if err := order.Validate(); err != nil {
		return tlsprovider.Status{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, i.opts.Timeout)
	defer cancel()
	have, err := i.order(bounded, order)
	if err != nil {
		return tlsprovider.Status{}, classed(ctx, "certificate of "+order.Host.String(), err)
	}
	return tlsprovider.Status{
		Certificate: provider.Certificate{Host: order.Host, Secret: have.GetName()},
		Problem:     problem(have),
	}, nil
}

// order brings the Certificate about and returns it.
func (i *Issuer) order(ctx context.Context, order tlsprovider.Order) (*unstructured.Unstructured, error) {
	want := i.certificate(order)
	for {
		have, err := i.certificates.Get(ctx, want.GetName(), metav1.GetOptions{})
		switch {
		case isAbsent(err):
			if have, err = i.create(ctx, want); err == nil || !apierrors.IsAlreadyExists(err) {
				return have, err
			}
			continue // somebody was faster: whose is it?
		case err != nil:
			return nil, err
		case !i.owns(have):
			return nil, taken("Certificate", want.GetName())
		case contains(have.Object, want.Object):
			return have, nil
		}
		// Of this very object: one that came in its place meanwhile is a conflict.
		want.SetUID(have.GetUID())
		want.SetResourceVersion(have.GetResourceVersion())
		have, err = i.certificates.Apply(ctx, want.GetName(), want, metav1.ApplyOptions{FieldManager: i.manager(), Force: true})
		if err == nil || !apierrors.IsConflict(err) && !isAbsent(err) {
			return have, err
		}
		want.SetUID("")
		want.SetResourceVersion("")
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// create makes a Certificate that is not there. cert-manager would overwrite whatever Secret is in the place of its own.
func (i *Issuer) create(ctx context.Context, want *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	secret, err := i.secrets.Get(ctx, want.GetName(), metav1.GetOptions{})
	switch {
	case err == nil && !i.owns(secret):
		return nil, taken("Secret", want.GetName())
	case err != nil && !isAbsent(err):
		return nil, err
	}
	// Not by Apply: that would change a foreign one that came meanwhile.
	return i.certificates.Create(ctx, want, metav1.CreateOptions{FieldManager: i.manager()})
}

// Cancel implements [tlsprovider.Issuer].
func (i *Issuer) Cancel(ctx context.Context, host provider.Host) error {
	if host == (provider.Host{}) {
		return nil // nobody can have ordered it
	}
	bounded, cancel := context.WithTimeout(ctx, i.opts.Timeout)
	defer cancel()
	name := i.objectName(host)
	err := i.remove(bounded, name, func(ctx context.Context) (metav1.Object, error) {
		return i.certificates.Get(ctx, name, metav1.GetOptions{})
	}, i.certificates.Delete)
	if err == nil {
		err = i.remove(bounded, name, func(ctx context.Context) (metav1.Object, error) {
			return i.secrets.Get(ctx, name, metav1.GetOptions{})
		}, i.secrets.Delete)
	}
	if err != nil {
		return classed(ctx, "certificate of "+host.String(), err)
	}
	return nil
}

// remove deletes an object if it is there and ours.
func (i *Issuer) remove(
	ctx context.Context, name string,
	get func(context.Context) (metav1.Object, error),
	remove func(context.Context, string, metav1.DeleteOptions, ...string) error,
) error {
	have, err := get(ctx)
	if err == nil && i.owns(have) {
		uid := have.GetUID()
		err = remove(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if apierrors.IsConflict(err) {
			return nil // ours is gone, and what is there now is not what was cancelled
		}
	}
	if isAbsent(err) {
		return nil
	}
	return err
}

// Orders implements [tlsprovider.Issuer].
func (i *Issuer) Orders(ctx context.Context) ([]tlsprovider.Order, error) {
	bounded, cancel := context.WithTimeout(ctx, i.opts.Timeout)
	defer cancel()
	list, err := i.certificates.List(bounded, metav1.ListOptions{LabelSelector: i.selector()})
	if err != nil {
		return nil, classed(ctx, "certificates", err)
	}
	var orders []tlsprovider.Order
	for n := range list.Items {
		object := &list.Items[n]
		if host, ok := i.hostOf(object); ok {
			// Somebody may have changed the owner: then it is one that differs from all others.
			orders = append(orders, tlsprovider.Order{Host: host, Owner: object.GetLabels()[ownerLabel]})
		}
	}
	return orders, nil
}

// contains reports whether all that want says is in have. What others have added there is theirs.
func contains(have, want any) bool {
	w, ok := want.(map[string]any)
	if !ok {
		return reflect.DeepEqual(have, want)
	}
	h, ok := have.(map[string]any)
	if !ok {
		return false
	}
	for key, value := range w {
		if !contains(h[key], value) {
			return false
		}
	}
	return true
}

func taken(kind, name string) error {
	return fmt.Errorf("there is a %s %s that is not ours: %w", kind, name, errdefs.ErrAlreadyExists)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
