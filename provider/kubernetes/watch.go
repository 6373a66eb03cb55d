package kubernetes

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

// Watch implements [provider.Watcher]. It returns early, with Unavailable or PermissionDenied, when the API server can not be
// asked; what it says about its own writes is needless and does no harm.
func (p *Provider) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(p.client, 0, p.namespace,
		func(opts *metav1.ListOptions) { opts.LabelSelector = p.mapping.selector(nil) })
	for _, k := range p.mapping.kinds {
		informer := factory.ForResource(k.GroupVersionResource).Informer()
		err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			// A watch that ends or is too old to go on is begun anew; what is refused is for the caller to try later.
			if c := class("list", k, err); errdefs.IsPermissionDenied(c) || c == errNoDefinitions {
				cancel(fmt.Errorf("watch %s in namespace %s: %w: %w", k.GroupResource(), p.namespace, c, err))
			}
		})
		if err == nil {
			_, err = informer.AddEventHandler(handler(changed))
		}
		if err == nil {
			err = informer.SetTransform(strip)
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w: %w", k.GroupResource(), errdefs.ErrUnavailable, err)
		}
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	factory.Shutdown()
	return context.Cause(ctx)
}

// handler calls changed for what is changed or removed. An object that appears anew is what we have written, or a copy.
func handler(changed func()) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(_ any, initial bool) {
			if !initial {
				changed()
			}
		},
		UpdateFunc: func(before, after any) {
			b, _ := before.(*unstructured.Unstructured)
			a, _ := after.(*unstructured.Unstructured)
			if b == nil || a == nil || b.GetResourceVersion() != a.GetResourceVersion() {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	}
}

// strip keeps of an object what tells whether it has changed.
func strip(object any) (any, error) {
	u, ok := object.(*unstructured.Unstructured)
	if !ok {
		return object, nil
	}
	small := &unstructured.Unstructured{Object: map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind()}}
	small.SetNamespace(u.GetNamespace())
	small.SetName(u.GetName())
	small.SetResourceVersion(u.GetResourceVersion())
	return small, nil
}
