// Package webspace gives users webspaces: system containers with root access and a web address, which boot on demand.
//
// # Words
//
// A webspace is what a user owns: one instance in a [Runtime] and its spec. It is keyed by the user's ID; its instance is
// called prefix + "u" + ID ("ws-u1000"). The spec (config, custom domains, port forwards) is stored in the instance
// itself, as its record, and nowhere else: the program can be killed at any moment and started elsewhere.
//
// Activation is making a webspace run and be ready; it yields an endpoint, an address and port that take connections.
// Reconciliation makes routes agree with what is: events of the runtime only mark a webspace as dirty, the truth is read.
//
// # Use
//
// A [Manager] holds all use cases. It is a [proxy.Router] and a [proxy.Activator], so that a gateway in front of it boots
// webspaces on their first request:
//
//	m, err := webspace.NewManager(runtime, directory, "example.org", nil)
//	go m.Run(ctx)
//	gateway := proxy.NewGateway(m, m, nil)
//
// Errors are classes of github.com/containerd/errdefs.
package webspace

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/publicsuffix"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
)

// Webspace is what a user owns, without its state.
type Webspace struct {
	User    identity.UserID
	Config  Config
	Domains []string    // custom domains, in the order they were added; the default domain is not among them
	Ports   map[int]int // port forwards: external port -> port of the instance
}

func (w Webspace) clone() Webspace {
	w.Domains = slices.Clone(w.Domains)
	w.Ports = maps.Clone(w.Ports)
	return w
}

// Config is what a member can set.
type Config struct {
	// StartupDelay is the longest time to wait after a start until HTTPPort takes connections.
	StartupDelay time.Duration
	// HTTPPort takes SSL-terminated HTTP, or passed-through TLS.
	HTTPPort int
	// SNIPassthrough hands TLS connections to the instance as they are.
	SNIPassthrough bool
}

// ConfigChange changes the options that are not nil.
type ConfigChange struct {
	StartupDelay   *time.Duration
	HTTPPort       *int
	SNIPassthrough *bool
}

func (c Config) with(change ConfigChange) Config {
	if change.StartupDelay != nil {
		c.StartupDelay = *change.StartupDelay
	}
	if change.HTTPPort != nil {
		c.HTTPPort = *change.HTTPPort
	}
	if change.SNIPassthrough != nil {
		c.SNIPassthrough = *change.SNIPassthrough
	}
	return c
}

func (c Config) validate(maxStartupDelay time.Duration) error {
	if c.StartupDelay < 0 || c.StartupDelay > maxStartupDelay {
		return invalid("startupDelay: %v is not between 0 and %v seconds", c.StartupDelay.Seconds(), maxStartupDelay.Seconds())
	}
	if !validPort(c.HTTPPort) {
		return invalid("httpPort: %d is not between 1 and 65535", c.HTTPPort)
	}
	return nil
}

func validPort(port int) bool { return port >= 1 && port <= 65535 }

// CreateRequest says what a new webspace is made of.
type CreateRequest struct {
	Image    string // alias or fingerprint
	Password string // root's, at most 256 bytes without control characters; empty: none is set
	SSH      bool   // install an SSH server with the account's keys, unless there is one, and forward a port to it
}

func (r CreateRequest) validate() error {
	if r.Image == "" || len(r.Image) > 256 {
		return invalid("image: give an alias or a fingerprint of at most 256 characters")
	}
	for _, c := range r.Image {
		// What image aliases are made of in practice. Anything else only ever tries to be a path or a query.
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@", c) {
			return invalid("image: %q is not allowed in a name", c)
		}
	}
	if strings.Contains(r.Image, "..") {
		return invalid(`image: ".." is not allowed in a name`)
	}
	return validatePassword(r.Password)
}

// Label returns the DNS label for a username: its one spelling in host names. Only letters, digits and hyphens of ASCII
// can be in one; usernames that differ in case alone share a label, and then only the webspace of the lowest user ID gets
// it. The error is InvalidArgument and says why a username can not have a host name.
func Label(username string) (string, error) {
	label := asciiLower(username)
	if !provider.IsLabel(label) {
		return "", invalid("username %.64q can not be part of a host name: that takes 1 to 63 of a-z, 0-9 and '-', with no '-' at either end", username)
	}
	return label, nil
}

func asciiLower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.Map(func(r rune) rune {
				if 'A' <= r && r <= 'Z' {
					return r + ('a' - 'A')
				}
				return r
			}, s)
		}
	}
	return s
}

// parseDomain returns the canonical form of a custom domain if a user may have it on the platform whose zone is given.
func parseDomain(s, zone string) (provider.Host, error) {
	host, err := provider.ParseHost(s)
	if err != nil {
		return provider.Host{}, err
	}
	name := host.String()
	if host.Within(zone) || strings.HasSuffix(zone, "."+name) {
		return provider.Host{}, invalid("domain %s belongs to this platform", name)
	}
	if suffix, _ := publicsuffix.PublicSuffix(name); suffix == name {
		return provider.Host{}, invalid("domain %s is a public suffix, under which anybody can register names", name)
	}
	return host, nil
}

// parseZone checks the platform's own domain. One label ("localhost") is enough there.
func parseZone(s string) (string, error) {
	zone := asciiLower(strings.TrimSuffix(s, "."))
	if _, err := provider.ParseHost(strings.Repeat("x", 63) + "." + zone); err != nil { // there is room for any label
		return "", invalid("domain %.300q is not a host name", s)
	}
	return zone, nil
}

func instanceName(prefix string, id identity.UserID) string { return prefix + "u" + id.String() }

// instanceUser is the inverse of instanceName. Names that are nearly right ("ws-u007") are somebody else's.
func instanceUser(prefix, name string) (identity.UserID, bool) {
	digits, ok := strings.CutPrefix(name, prefix+"u")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || strconv.FormatInt(n, 10) != digits {
		return 0, false
	}
	return identity.UserID(n), true
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
