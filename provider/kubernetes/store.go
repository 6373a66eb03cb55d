package kubernetes

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/netsoc/webspaced/provider"
)

// cluster is what stands in the namespace.
type cluster struct {
	routes  map[string]objects // by name
	gateway gateway
}

// gateway is the address of the gateway's Service, or why there is none.
type gateway struct {
	addr netip.Addr
	err  error
}

// page is how many objects one answer of the API server has at most, and selected how many routes are asked for by name
// rather than all together.
const (
	page     = 500
	selected = 20
)

// selector selects the objects of these routes; of all, if there are none or many.
func (m mapping) selector(routes []string) string {
	s := labelManagedBy + "=" + manager + "," + labelDeployment + "=" + m.deployment + "," + labelRoute
	routes = slices.DeleteFunc(slices.Clone(routes), func(name string) bool { return !provider.IsLabel(name) })
	if len(routes) > 0 && len(routes) <= selected {
		s += " in (" + strings.Join(routes, ",") + ")"
	}
	return s
}

// read returns what stands of these routes, at least; of all, if there are none.
func (p *Provider) read(ctx context.Context, routes []string) (cluster, error) {
	now := cluster{routes: make(map[string]objects)}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, k := range p.mapping.kinds {
		group.Go(func() error {
			return p.list(ctx, k, p.mapping.selector(routes), func(object *unstructured.Unstructured) {
				mu.Lock()
				defer mu.Unlock()
				name := object.GetLabels()[labelRoute]
				if now.routes[name] == nil {
					now.routes[name] = objects{}
				}
				now.routes[name][key{k, object.GetName()}] = object
			})
		})
	}
	if p.mapping.gateway != "" {
		group.Go(func() error {
			var err error
			now.gateway, err = p.readGateway(ctx)
			return err
		})
	}
	return now, group.Wait()
}

// list calls fn for each object.
func (p *Provider) list(ctx context.Context, k kind, selector string, fn func(*unstructured.Unstructured)) error {
	opts := metav1.ListOptions{LabelSelector: selector, Limit: page}
	for restarted := false; ; {
		var list *unstructured.UnstructuredList
		err := p.call(ctx, "list", k, func(ctx context.Context, r dynamic.ResourceInterface) (err error) {
			list, err = r.List(ctx, opts)
			return err
		})
		if apierrors.IsResourceExpired(err) && !restarted {
			// The first pages are too old to go on from. What they had is read once more.
			opts.Continue, opts.Limit, restarted = "", 0, true
			continue
		}
		if err != nil {
			return err
		}
		for i := range list.Items {
			fn(&list.Items[i])
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

// readGateway returns the cluster IP of the gateway's Service. That there is none concerns the routes to the gateway alone.
func (p *Provider) readGateway(ctx context.Context) (gateway, error) {
	var service *unstructured.Unstructured
	err := p.call(ctx, "get", services, func(ctx context.Context, r dynamic.ResourceInterface) (err error) {
		service, err = r.Get(ctx, p.mapping.gateway, metav1.GetOptions{})
		return err
	})
	unavailable := func(why string) (gateway, error) {
		return gateway{err: fmt.Errorf("the gateway's service %s %s: %w", p.mapping.gateway, why, errdefs.ErrUnavailable)}, nil
	}
	if apierrors.IsNotFound(err) {
		return unavailable("does not exist")
	} else if err != nil {
		return gateway{}, err
	}
	ip, _, _ := unstructured.NestedString(service.Object, "spec", "clusterIP")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return unavailable("has no cluster IP")
	}
	return gateway{addr: addr}, nil
}

// converge makes the objects of a route those that are wanted, in an order in which nothing refers to what is not there:
// first what others refer to, removals the other way around. It fails with Conflict when they are no longer what was read.
func (p *Provider) converge(ctx context.Context, have, want objects) error {
	for _, k := range p.mapping.kinds {
		for _, place := range want.places(k) {
			if err := p.write(ctx, place, have[place], want[place]); err != nil {
				return err
			}
		}
	}
	for _, k := range slices.Backward(p.mapping.kinds) {
		for _, place := range have.places(k) {
			if want[place] == nil {
				if err := p.remove(ctx, place, have[place]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// places of the objects of one kind, sorted by name.
func (o objects) places(k kind) (all []key) {
	for place := range o {
		if place.kind == k {
			all = append(all, place)
		}
	}
	slices.SortFunc(all, func(a, b key) int { return strings.Compare(a.name, b.name) })
	return all
}

// write makes an object say what is wanted. One that is not there is created rather than applied, so that one of somebody
// else's in its place is an error and is not taken over.
func (p *Provider) write(ctx context.Context, place key, have, want *unstructured.Unstructured) error {
	if have == nil {
		return p.call(ctx, "create", place.kind, func(ctx context.Context, r dynamic.ResourceInterface) error {
			_, err := r.Create(ctx, want, metav1.CreateOptions{FieldManager: manager})
			return err
		})
	}
	if stands(place.kind, have, want) {
		return nil
	}
	want = want.DeepCopy()
	want.SetUID(have.GetUID()) // another object of that name is a conflict
	var got *unstructured.Unstructured
	err := p.call(ctx, "patch", place.kind, func(ctx context.Context, r dynamic.ResourceInterface) (err error) {
		got, err = r.Apply(ctx, place.name, want, metav1.ApplyOptions{FieldManager: manager, Force: true})
		return err
	})
	if err != nil || stands(place.kind, got, want) {
		return err
	}
	// What somebody else has added is his as far as server-side apply is concerned.
	restore(place.kind, got, want)
	return p.call(ctx, "update", place.kind, func(ctx context.Context, r dynamic.ResourceInterface) error {
		_, err := r.Update(ctx, got, metav1.UpdateOptions{FieldManager: manager})
		return err
	})
}

// remove removes that very object.
func (p *Provider) remove(ctx context.Context, place key, have *unstructured.Unstructured) error {
	uid, version := have.GetUID(), have.GetResourceVersion()
	err := p.call(ctx, "delete", place.kind, func(ctx context.Context, r dynamic.ResourceInterface) error {
		return r.Delete(ctx, place.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// call does one request, with a deadline, and gives its error a class.
func (p *Provider) call(ctx context.Context, verb string, k kind, do func(context.Context, dynamic.ResourceInterface) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := do(limited, p.client.Resource(k.GroupVersionResource).Namespace(p.namespace))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s %s in namespace %s: %w: %w", verb, k.GroupResource(), p.namespace, class(verb, k, err), err)
}

var errNoDefinitions = fmt.Errorf("the custom resource definitions of Traefik are not installed: %w", errdefs.ErrUnavailable)

// class of an error of the API server.
func class(verb string, k kind, err error) error {
	switch {
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return errdefs.ErrPermissionDenied
	case apierrors.IsAlreadyExists(err):
		return errdefs.ErrAlreadyExists
	case apierrors.IsConflict(err):
		return errdefs.ErrConflict
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return errdefs.ErrInvalidArgument
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err) && k.Group == "traefik.io" && (verb == "list" || verb == "create"):
		return errNoDefinitions
	case apierrors.IsNotFound(err) && (verb == "patch" || verb == "update"):
		return errdefs.ErrConflict // it was there when we read it
	}
	return errdefs.ErrUnavailable
}

// stand reports whether objects are just those wanted.
func stand(have, want objects) bool {
	if len(have) != len(want) {
		return false
	}
	for place, object := range want {
		if have[place] == nil || !stands(place.kind, have[place], object) {
			return false
		}
	}
	return true
}
