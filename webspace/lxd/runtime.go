package lxd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/internal/keylock"
)

// Options say where the engine is and what instances are made with. The zero value is the engine of this host, whichever
// answers, and its default project and profile.
type Options struct {
	// Socket is the path of the engine's unix socket. Default, without a URL: the first of [Sockets] that answers.
	Socket string
	// URL is the engine's API over HTTPS ("https://lxd.example:8443"), an alternative to Socket. The others are PEM texts,
	// not files: ClientCert and ClientKey authenticate this program, ServerCert is the engine's own certificate, CA what
	// it was signed with. Without the latter two the system's CAs have to know the engine.
	URL, ClientCert, ClientKey, ServerCert, CA string
	// InsecureSkipVerify takes any server for the engine. For experiments only.
	InsecureSkipVerify bool
	// TrustPassword makes the engine trust ClientCert if it does not yet. LXD 5 only.
	TrustPassword string

	Project string // default: "default"
	Profile string // of new instances; default: "default"
	// NIC is the device through which instances are reached. Default: the profile's first one on a managed network.
	NIC string
	// TrustedPrefixes are where addresses are believed that guests give themselves, for networks on which the engine
	// assigns none. Within them a guest can have traffic sent to any address. Default: nowhere.
	TrustedPrefixes []netip.Prefix

	CallTimeout   time.Duration // of a request that is answered at once; default: 30 s
	StartTimeout  time.Duration // of a start, a forced stop and a deletion; default: 60 s
	CreateTimeout time.Duration // of unpacking an image; default: 5 min
	EventTimeout  time.Duration // after which a silent connection is dead; default: 25 s

	Logger *slog.Logger // default: slog.Default()
}

// Sockets are where LXD and Incus listen, by package.
func Sockets() []string {
	return []string{
		"/var/snap/lxd/common/lxd/unix.socket",
		"/var/lib/lxd/unix.socket",
		"/var/lib/incus/unix.socket",
	}
}

// Runtime is a [webspace.Runtime] on LXD or Incus, with all optional interfaces. All its methods are safe for concurrent
// use. It holds no connection and no goroutine beyond a call, so there is nothing to close.
type Runtime struct {
	client *client
	opts   Options

	mu       sync.Mutex
	nic      nic                 // that of the profile, see currentNIC
	reserved map[netip.Addr]bool // addresses of instances that are being created
	reading  *reading            // the latest of leases, or nil

	writers keylock.Locks[string] // one writer of an instance's record at a time
}

var _ interface {
	webspace.Runtime
	webspace.Watcher
	webspace.Imager
	webspace.Execer
	webspace.Logger
} = (*Runtime)(nil)

// Connect connects to the engine, and checks that it can be used. It logs a warning for each thing that makes guests
// less isolated than they could be. Errors: Unavailable if no engine answers, PermissionDenied if it does not trust us,
// FailedPrecondition if there is no such project, profile or NIC, InvalidArgument for bad options.
func Connect(ctx context.Context, opts *Options) (*Runtime, error) {
	o := opts.withDefaults()
	c, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &Runtime{client: c, opts: o, reserved: map[netip.Addr]bool{}}
	n, err := r.readNIC(ctx)
	if err != nil {
		return nil, connecting(err)
	}
	n.warn(o.Logger)
	var once sync.Once
	c.denied = func(err error) {
		once.Do(func() {
			o.Logger.Error("the engine does not permit what it has to; see our certificate and its restrictions", "error", err)
		})
	}
	return r, nil
}

func (opts *Options) withDefaults() Options {
	var o Options
	if opts != nil {
		o = *opts
	}
	text := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	duration := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	text(&o.Project, "default")
	text(&o.Profile, "default")
	duration(&o.CallTimeout, 30*time.Second)
	duration(&o.StartTimeout, time.Minute)
	duration(&o.CreateTimeout, 5*time.Minute)
	duration(&o.EventTimeout, 25*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func connect(ctx context.Context, o Options) (*client, error) {
	if o.URL != "" {
		c, err := dialHTTPS(o)
		if err != nil {
			return nil, err
		}
		return c, c.authenticate(ctx, o.TrustPassword)
	}
	sockets := Sockets()
	if o.Socket != "" {
		sockets = []string{o.Socket}
	}
	var failures []error
	for _, socket := range sockets {
		c, err := dialUnix(socket, o)
		if err != nil {
			return nil, err
		}
		if err = c.authenticate(ctx, ""); err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failures = append(failures, fmt.Errorf("%s: %w", socket, err))
	}
	return nil, errors.Join(failures...)
}

// authenticate asks the engine who we are to it.
func (c *client) authenticate(ctx context.Context, password string) error {
	for {
		var server api.Server
		if _, err := c.get(ctx, "/1.0?"+url.Values{"project": {c.project}}.Encode(), &server); err != nil {
			return connecting(err)
		}
		if server.Auth == "trusted" {
			return nil
		}
		if password == "" {
			return fmt.Errorf("lxd: the engine does not trust our certificate: %w", errdefs.ErrPermissionDenied)
		}
		certificate := api.CertificatesPost{Password: password}
		certificate.Name, certificate.Type = userAgent, api.CertificateTypeClient
		if err := c.change(ctx, c.timeout, http.MethodPost, "/1.0/certificates", certificate, ""); err != nil {
			return connecting(err)
		}
		password = ""
	}
}

// Isolated implements [webspace.Isolated].
func (r *Runtime) Isolated() {}

// recordKey is where an instance keeps its record. Root in the guest can read it.
const recordKey = "user._webspaced"

// List implements [webspace.Runtime]. What it asks of the engine does not grow with the number of instances: one call,
// a second one, once a second, if an instance has no pinned address, and a third if that is needed for TrustedPrefixes.
func (r *Runtime) List(ctx context.Context, prefix string) ([]webspace.Instance, error) {
	var all []api.InstanceFull
	query := url.Values{"recursion": {"1"}}
	if _, err := r.client.get(ctx, r.client.path(query, "instances"), &all); err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i api.InstanceFull) bool {
		return !strings.HasPrefix(i.Name, prefix) || checkName(i.Name) != nil
	})
	addresses, err := r.addresses(ctx, all)
	if err != nil {
		return nil, err
	}
	instances := make([]webspace.Instance, len(all))
	for i := range all {
		instances[i] = instanceOf(&all[i].Instance, addresses[all[i].Name])
	}
	return instances, nil
}

// Get implements [webspace.Runtime].
func (r *Runtime) Get(ctx context.Context, name string) (webspace.Instance, error) {
	i, _, err := r.instance(ctx, name)
	if err != nil {
		return webspace.Instance{}, err
	}
	addresses, err := r.addresses(ctx, []api.InstanceFull{{Instance: *i}})
	if err != nil {
		return webspace.Instance{}, err
	}
	return instanceOf(i, addresses[name]), nil
}

// instance reads one instance.
func (r *Runtime) instance(ctx context.Context, name string) (i *api.Instance, etag string, err error) {
	if err := checkName(name); err != nil {
		return nil, "", err
	}
	i = new(api.Instance)
	etag, err = r.client.get(ctx, r.client.path(nil, "instances", name), i)
	return i, etag, err
}

func instanceOf(i *api.Instance, address netip.Addr) webspace.Instance {
	record := recordOf(i)
	return webspace.Instance{
		Name:     i.Name,
		Status:   statusOf(i.StatusCode),
		Address:  address,
		Record:   record,
		Revision: revisionOf(record),
	}
}

func statusOf(code api.StatusCode) webspace.Status {
	switch code {
	case api.Stopped:
		return webspace.StatusStopped
	case api.Starting:
		return webspace.StatusStarting
	case api.Running, api.Started, api.Ready, api.Thawed:
		return webspace.StatusRunning
	case api.Stopping, api.Aborting:
		return webspace.StatusStopping
	case api.Freezing, api.Frozen:
		return webspace.StatusFrozen
	}
	return webspace.StatusError
}

// Create implements [webspace.Runtime]. Only images that the engine has are used: none is ever downloaded.
func (r *Runtime) Create(ctx context.Context, name string, opts webspace.CreateOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkRecord(opts.Record); err != nil {
		return err
	}
	fingerprint, err := r.findImage(ctx, opts.Image)
	if err != nil {
		return err
	}
	n, err := r.readNIC(ctx)
	if err != nil {
		return connected(err)
	}
	request := api.InstancesPost{
		Name:   name,
		Type:   api.InstanceTypeContainer,
		Source: api.InstanceSource{Type: "image", Fingerprint: fingerprint},
	}
	request.Profiles = []string{r.opts.Profile}
	request.Config = map[string]string{}
	if len(opts.Record) > 0 {
		request.Config[recordKey] = string(opts.Record)
	}
	// Another program may take the address that was free when we looked; the engine then refuses ours.
	for tries := 4; ; tries-- {
		address, release, err := r.reserve(ctx, n, name)
		if err != nil {
			return err
		}
		if address.IsValid() {
			device := maps.Clone(n.config)
			device["ipv4.address"] = address.String()
			request.Devices = map[string]map[string]string{n.device: device}
		}
		err = r.client.change(ctx, r.opts.CreateTimeout, http.MethodPost, r.client.path(nil, "instances"), request, "")
		release()
		if !errors.Is(err, errAddressTaken) || tries == 1 {
			return err
		}
	}
}

// Delete implements [webspace.Runtime].
func (r *Runtime) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return retry(ctx, busyLimit, func() error {
		return r.client.change(ctx, r.opts.StartTimeout, http.MethodDelete, r.client.path(nil, "instances", name), nil, "")
	})
}
