package certmanager

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/netsoc/webspaced/provider"
)

// Watch implements [tlsprovider.Watcher]. It outlives an API server that is away, and a cert-manager that is not installed
// yet.
func (i *Issuer) Watch(ctx context.Context, changed func(provider.Host)) error {
	informer := dynamicinformer.NewFilteredDynamicInformer(i.client, certificates, i.namespace, 0, nil,
		func(opts *metav1.ListOptions) { opts.LabelSelector = i.selector() }).Informer()
	// An error is nothing to tell here: who orders meets with the same.
	if err := informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		return err
	}
	tell := func(object any) {
		if deleted, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = deleted.Obj
		}
		if certificate, ok := object.(*unstructured.Unstructured); ok {
			if host, ok := i.hostOf(certificate); ok {
				changed(host)
			}
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(object any, initial bool) {
			if !initial { // else it was there before
				tell(object)
			}
		},
		UpdateFunc: func(_, object any) { tell(object) },
		DeleteFunc: tell,
	}); err != nil {
		return err
	}
	informer.RunWithContext(ctx)
	return ctx.Err()
}
