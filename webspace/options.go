package webspace

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/tlsprovider"
)

// Mode says where the routes of running webspaces point.
type Mode string

const (
	// Direct routes go straight to the instance while it is ready, and to the gateway otherwise.
	Direct Mode = "direct"
	// Inline routes go to the gateway for ever, so that starts and stops change nothing in the reverse proxy.
	Inline Mode = "inline"
)

// Options of a [Manager]. The zero value of each is its default.
type Options struct {
	// Prefix of the instances' names ["ws-"]. Two managers on one runtime need different ones.
	Prefix string
	// Defaults of webspaces that do not say otherwise [3 s, port 80].
	Defaults Config
	// MaxStartupDelay bounds what members can set [60 s].
	MaxStartupDelay time.Duration

	// Provider takes the routes. nil: there are none, all requests come through the gateway.
	Provider provider.Provider
	// Mode [Direct].
	Mode Mode
	// Gateway is the URL at which the reverse proxy reaches the gateway. Required with a Provider.
	Gateway string
	// TLSGateway is where the reverse proxy reaches the gateway for TLS that it passes through: "tcp://HOST:PORT". Without
	// a Provider, what else says that there is a gateway for TLS. Empty: no webspace can take TLS itself.
	TLSGateway string
	// Settle is how long a reverse proxy may take to follow a changed route [3 s; negative: none].
	Settle time.Duration

	// Boots is how many webspaces boot at a time, and how many are set up by their creation at a time [4].
	Boots int
	// StartTimeout bounds the runtime's start of an instance [60 s].
	StartTimeout time.Duration
	// AddressTimeout bounds the wait for a started instance's address [15 s].
	AddressTimeout time.Duration
	// StopGrace is how long an instance may take to shut down before it is killed [30 s].
	StopGrace time.Duration
	// Drain is how long a stop waits for requests that are held for the webspace, and again for those under way in the
	// gateway [5 s].
	Drain time.Duration
	// ShellTimeout bounds [Manager.Shell], with the start of the webspace if there is one [5 min].
	ShellTimeout time.Duration
	// SetupTimeout bounds what a creation with a password or an SSH server does in the instance [10 min].
	SetupTimeout time.Duration
	// Probe reports whether an endpoint takes connections; it is called until it succeeds, and bounds itself. The
	// default connects by TCP.
	Probe func(ctx context.Context, at netip.AddrPort) error

	// Ports bounds port forwards [49152 to 65535, 64 each webspace].
	Ports PortRange
	// Forwarder makes what serves the port forwards; it is given the Manager. nil: they are only remembered.
	Forwarder func(proxy.Activator) PortForwarder
	// MaxDomains bounds the custom domains of a webspace [20].
	MaxDomains int
	// VerifyDomain proves that a user controls a domain (in canonical form). Errors are InvalidArgument and tell the
	// user what is missing. nil: there are no custom domains.
	VerifyDomain func(ctx context.Context, user identity.UserID, domain string) error
	// DomainRecheck is how often the proof of each custom domain is looked at again [24 h; negative: never]. A domain whose
	// proof was missing three times, over DomainGrace, is not routed any more until it is there again.
	DomainRecheck time.Duration
	// DomainGrace [72 h].
	DomainGrace time.Duration

	// Issuer obtains the certificates of custom domains, unless their webspace takes TLS itself. nil: they are served with
	// what certificate the reverse proxy has for them.
	Issuer tlsprovider.Issuer
	// IssueDefault has the Issuer obtain those of the default domains, too.
	IssueDefault bool

	// Resync is the interval between full reads of the runtime and the provider [5 min; 1 min with a provider that is no
	// [provider.Watcher], as that is how long what somebody else has done to a route stands; at most 10 s with a runtime
	// that can not be watched].
	Resync time.Duration
	// Logger [slog.Default].
	Logger *slog.Logger
	// Observer is told what was done, for metrics [nobody].
	Observer Observer
}

// PortRange bounds port forwards.
type PortRange struct {
	First, Last int // external ports, inclusive
	Max         int // forwards each webspace
}

func (o Options) withDefaults(watched bool) Options {
	set(&o.Prefix, "ws-")
	set(&o.Defaults.StartupDelay, 3*time.Second)
	set(&o.Defaults.HTTPPort, 80)
	set(&o.MaxStartupDelay, time.Minute)
	set(&o.Mode, Direct)
	set(&o.Settle, 3*time.Second)
	set(&o.Boots, 4)
	set(&o.StartTimeout, time.Minute)
	set(&o.AddressTimeout, 15*time.Second)
	set(&o.StopGrace, 30*time.Second)
	set(&o.Drain, 5*time.Second)
	set(&o.ShellTimeout, 5*time.Minute)
	set(&o.SetupTimeout, 10*time.Minute)
	set(&o.Ports.First, 49152)
	set(&o.Ports.Last, 65535)
	set(&o.Ports.Max, 64)
	set(&o.MaxDomains, 20)
	set(&o.DomainRecheck, 24*time.Hour)
	set(&o.DomainGrace, 72*time.Hour)
	if _, ok := o.Provider.(provider.Watcher); o.Provider != nil && !ok {
		set(&o.Resync, time.Minute)
	}
	set(&o.Resync, 5*time.Minute)
	if !watched {
		o.Resync = min(o.Resync, 10*time.Second)
	}
	if o.Probe == nil {
		o.Probe = dial
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func set[T comparable](option *T, value T) {
	var zero T
	if *option == zero {
		*option = value
	}
}

func (o Options) validate() error {
	switch {
	case !provider.IsLabel(o.Prefix + "u1"):
		return invalid("prefix %q can not begin a DNS label", o.Prefix)
	case len(o.Prefix) > 32:
		return invalid("prefix %q has more than 32 characters", o.Prefix)
	case o.Mode != Direct && o.Mode != Inline:
		return invalid("mode %q is neither direct nor inline", o.Mode)
	case !validPort(o.Ports.First) || !validPort(o.Ports.Last) || o.Ports.First > o.Ports.Last || o.Ports.Max < 0:
		return invalid("port range %d to %d", o.Ports.First, o.Ports.Last)
	case o.TLSGateway != "" && (!strings.HasPrefix(o.TLSGateway, "tcp://") || provider.ValidateBackend(o.TLSGateway) != nil):
		return invalid("option TLSGateway: %q is not tcp://HOST:PORT", o.TLSGateway)
	case o.Boots < 0 || o.MaxDomains < 0 || o.Resync < 0:
		return invalid("options Boots, MaxDomains and Resync can not be negative")
	}
	if o.Provider != nil {
		if err := provider.ValidateBackend(o.Gateway); err != nil {
			return fmt.Errorf("option Gateway: %w", err)
		}
	}
	return o.Defaults.validate(o.MaxStartupDelay)
}
