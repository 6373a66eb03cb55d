// Package kubeports brings port forwards into a Kubernetes cluster: it keeps the ports of a Service in agreement with those
// that a [webspace.PortForwarder] forwards.
//
//	ports, err := kubeports.New(forwarder, config, "webspaces", "webspaced-ports", nil)
//	go ports.Run(ctx, manager.Synced())
//
// External port N becomes the Service's port ws-fwd-N, from N to N. The Service has to be there, with a port of its own: who
// deploys webspaced says of what type it is and where it leads. What may be asked of the API server is in
// deploy/kubernetes/rbac-ports.yaml.
package kubeports

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
)

// Options are what may differ between forwarders. The zero value of each is its default.
type Options struct {
	// Deployment marks which ports are ours: deployments of different names can share a Service. A DNS label ["webspaced"].
	Deployment string
	// Batch is how long changes are collected before they are written [100 ms].
	Batch time.Duration
	// Settle is how long after the first full read of all webspaces ports that nobody wants stay: the last forwards may
	// still be on their way [10 s].
	Settle time.Duration
	// Resync is the interval at which the Service is read even if nothing is heard of it [1 min].
	Resync time.Duration
	// Timeout bounds each request [10 s].
	Timeout time.Duration
	// Logger gets a warning when the Service can not be written [slog.Default].
	Logger *slog.Logger
}

// Forwarder is a [webspace.PortForwarder] that has another one forward ports, and has them in a Service.
//
// A port of somebody else's that has the number or name of one of ours stays: [Forwarder.Status] says so for that port
// alone. When Run ends, the ports stay in the Service.
type Forwarder struct {
	inner     webspace.PortForwarder
	client    dynamic.Interface
	services  dynamic.ResourceInterface
	namespace string
	name      string
	opts      Options
	kick      chan struct{}

	mu        sync.Mutex
	desired   map[int]bool
	carried   map[int]bool // by the Service, when it was last seen
	conflicts map[int]error
	err       error // why the Service could not be brought into agreement
}

var _ webspace.PortForwarder = (*Forwarder)(nil)

var services = schema.GroupVersionResource{Version: "v1", Resource: "services"}

// New returns a Forwarder. It asks nothing of the API server, which may be away. Errors are InvalidArgument.
func New(inner webspace.PortForwarder, config *rest.Config, namespace, service string, opts *Options) (*Forwarder, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	f := &Forwarder{
		inner: inner, client: client, services: client.Resource(services).Namespace(namespace), namespace: namespace, name: service,
		kick:    make(chan struct{}, 1),
		desired: map[int]bool{}, carried: map[int]bool{},
	}
	if opts != nil {
		f.opts = *opts
	}
	if f.opts.Deployment == "" {
		f.opts.Deployment = "webspaced"
	}
	for option, normal := range map[*time.Duration]time.Duration{
		&f.opts.Batch: 100 * time.Millisecond, &f.opts.Settle: 10 * time.Second,
		&f.opts.Resync: time.Minute, &f.opts.Timeout: 10 * time.Second,
	} {
		if *option <= 0 {
			*option = normal
		}
	}
	if f.opts.Logger == nil {
		f.opts.Logger = slog.Default()
	}
	for what, label := range map[string]string{"namespace": namespace, "service": service, "deployment": f.opts.Deployment} {
		if !provider.IsLabel(label) {
			return nil, fmt.Errorf("%s %q is not a DNS label: %w", what, label, errdefs.ErrInvalidArgument)
		}
	}
	return f, nil
}

// Forward implements [webspace.PortForwarder].
func (f *Forwarder) Forward(port int, t proxy.Target) {
	f.inner.Forward(port, t)
	f.want(port, true)
}

// Unforward implements [webspace.PortForwarder].
func (f *Forwarder) Unforward(port int) {
	f.inner.Unforward(port)
	f.want(port, false)
}

func (f *Forwarder) want(port int, wanted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.desired[port] == wanted {
		return
	}
	if wanted {
		f.desired[port] = true
	} else {
		delete(f.desired, port)
	}
	f.wake()
}

func (f *Forwarder) wake() {
	select {
	case f.kick <- struct{}{}:
	default: // it will look anyway
	}
}

// Status implements [webspace.PortForwarder]. A port is open if it is, and in the Service. AlreadyExists: a port of somebody
// else's is in its place there.
func (f *Forwarder) Status(port int) error {
	if err := f.inner.Status(port); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.conflicts[port] != nil:
		return f.conflicts[port]
	case f.carried[port]:
		return nil
	case f.err != nil:
		return f.err
	}
	return fmt.Errorf("port %d is about to be added to Service %s: %w", port, f.name, errdefs.ErrNotFound)
}

// Run keeps the Service in agreement until ctx ends, and returns ctx's error. Before synced is closed more ports may be
// desired than are known: none is removed.
func (f *Forwarder) Run(ctx context.Context, synced <-chan struct{}) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	informer, err := f.informer()
	if err != nil {
		return err
	}
	watching.Go(func() { informer.RunWithContext(ctx) })

	const shortest, longest = time.Second, 30 * time.Second
	retry := shortest
	timer := time.NewTimer(0) // when to look next, whatever happens
	defer timer.Stop()
	var settled <-chan time.Time
	complete := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-synced:
			synced, settled = nil, time.After(f.opts.Settle)
			continue
		case <-settled:
			settled, complete = nil, true
		case <-timer.C:
		case <-f.kick:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(f.opts.Batch):
			}
			// What came meanwhile is in this batch.
			select {
			case <-f.kick:
			default:
			}
		}
		if f.sync(ctx, complete) {
			retry = shortest
			timer.Reset(f.opts.Resync)
		} else {
			timer.Reset(retry/2 + rand.N(retry))
			retry = min(2*retry, longest)
		}
	}
}

// informer wakes Run when something happens to the Service. Errors are met again by Run itself.
func (f *Forwarder) informer() (cache.SharedIndexInformer, error) {
	informer := dynamicinformer.NewFilteredDynamicInformer(f.client, services, f.namespace, 0, nil, func(opts *metav1.ListOptions) {
		opts.FieldSelector = fields.OneTermEqualSelector("metadata.name", f.name).String()
	}).Informer()
	if err := informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		return nil, err
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { f.wake() }, UpdateFunc: func(any, any) { f.wake() }, DeleteFunc: func(any) { f.wake() },
	})
	return informer, err
}

// sync brings the Service into agreement with what is desired, and reports whether it is.
func (f *Forwarder) sync(ctx context.Context, complete bool) bool {
	f.mu.Lock()
	desired := maps.Clone(f.desired)
	f.mu.Unlock()
	c, err := f.write(ctx, desired, complete)
	if ctx.Err() != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.carried, f.conflicts = c.carried, c.conflicts
	} else if errdefs.IsNotFound(err) {
		f.carried, f.conflicts = nil, nil // no Service, no port
		// A class that says something of the port would be mistaken for one.
		err = fmt.Errorf("there is no Service %s in namespace %s: %w", f.name, f.namespace, errdefs.ErrFailedPrecondition)
	}
	if err != nil && (f.err == nil || f.err.Error() != err.Error()) {
		f.opts.Logger.Warn("the Service of the port forwards can not be written", "service", f.namespace+"/"+f.name, "error", err)
	}
	f.err = err
	return err == nil
}

// write reads the Service and writes it if it differs. Lost races are run again.
func (f *Forwarder) write(ctx context.Context, desired map[int]bool, complete bool) (change, error) {
	const tries = 10
	for try := 1; ; try++ {
		c, err := f.writeOnce(ctx, desired, complete)
		if !apierrors.IsConflict(err) || try == tries || ctx.Err() != nil {
			return c, classed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(time.Duration(try) * 20 * time.Millisecond)):
		}
	}
}

func (f *Forwarder) writeOnce(ctx context.Context, desired map[int]bool, complete bool) (change, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
	defer cancel()
	object, err := f.services.Get(ctx, f.name, metav1.GetOptions{})
	if err != nil {
		return change{}, err
	}
	have := readService(object, f.opts.Deployment)
	c := plan(have, desired, complete)
	if c.isNone(have) {
		return c, nil
	}
	var annotation any // nil: none
	if c.claims != "" {
		annotation = c.claims
	}
	// The list is written whole, as it was read: the revision makes sure that nobody has changed it meanwhile. Nothing
	// else of the Service is ours.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"resourceVersion": object.GetResourceVersion(),
			"annotations":     map[string]any{claims + f.opts.Deployment: annotation},
		},
		"spec": map[string]any{"ports": c.ports},
	})
	if err != nil {
		return change{}, err
	}
	_, err = f.services.Patch(ctx, f.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "webspaced-" + f.opts.Deployment})
	return c, err
}

func classed(err error) error {
	var class error
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		class = errdefs.ErrNotFound
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		class = errdefs.ErrPermissionDenied
	case apierrors.IsInvalid(err):
		class = errdefs.ErrFailedPrecondition
	case errors.Is(err, context.Canceled):
		return err
	default:
		class = errdefs.ErrUnavailable
	}
	return fmt.Errorf("the Service of the port forwards can not be written: %w: %w", class, err)
}
