// Package redis is a route provider for Traefik's Redis provider: each route is some keys below Traefik's root key.
//
//	p, err := redis.New("127.0.0.1:6379", &redis.Options{HTTPEntryPoint: "web"})
//
// With Traefik's static configuration: --providers.redis.endpoints=127.0.0.1:6379. Traefik reads all keys of the database
// that begin with the root key again, twice, for each key that changes, in a time that grows with the square of their
// number: keep to some thousand routes, and to a database that holds nothing else. It takes over nothing new while any of
// these keys has a value that it can not read, whoever wrote that one.
//
// Private keys of certificates stand in Redis as they are.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sync/errgroup"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

// Options say how Redis is reached and what is written. The zero value suits a Redis without a password and a Traefik that
// terminates no TLS.
type Options struct {
	// Username and Password of Redis' access control. Empty: none. Needed are the keys below RootKey, the commands SCAN,
	// MGET, SET, MSET, DEL, MULTI, EXEC, and better CONFIG GET and CONFIG SET as well: see [Provider.Routes].
	Username, Password string
	// DB is the number of the database.
	DB int
	// TLS secures the connection. Nil: it is plain.
	TLS *tls.Config
	// Timeout bounds each exchange with Redis. A call whose context is cancelled ends within it. Zero: 5 s.
	Timeout time.Duration
	// RootKey is what Traefik calls so (--providers.redis.rootkey). Empty: "traefik".
	RootKey string
	// Logger gets warnings about what keeps Traefik from following. Nil: slog.Default.
	Logger *slog.Logger

	// Deployment marks what is ours: the names of routers, services and so on that begin with it and a dot, in any case of
	// letters. Deployments of different names can share a root key. A DNS label; empty: "webspaced".
	Deployment string
	// HTTPEntryPoint takes plain HTTP. Empty: the entry points that Traefik uses by default.
	HTTPEntryPoint string
	// HTTPSEntryPoint takes TLS, which Traefik terminates for http:// backends and passes through to tcp:// ones.
	// Empty: none is terminated, and what is passed through comes in at Traefik's default entry points.
	HTTPSEntryPoint string
	// CertResolver is Traefik's certificate resolver for hosts that have no certificate of their own. Empty: Traefik's own
	// certificates.
	CertResolver string
	// CertDomains are the names in the certificate that CertResolver is to obtain, such as a wildcard. Empty: one
	// certificate for each host.
	CertDomains []string
	// ChallengeURL is where ACME's HTTP-01 challenges of all hosts go. Empty: with the rest.
	ChallengeURL string
}

// Provider writes routes to Redis. It implements [provider.Provider].
type Provider struct {
	client  *redis.Client
	root    string
	mapping traefik.Mapping
	log     *slog.Logger
	memory  memory
}

var _ provider.Provider = (*Provider)(nil)

// New returns a Provider on the Redis at an address, HOST:PORT. It connects when it is first used, and again whenever it
// has to. Errors are InvalidArgument.
func New(address string, opts *Options) (*Provider, error) {
	if opts == nil {
		opts = &Options{}
	}
	p := &Provider{
		root: opts.RootKey,
		log:  opts.Logger,
		mapping: traefik.Mapping{
			Deployment:      opts.Deployment,
			HTTPEntryPoint:  opts.HTTPEntryPoint,
			HTTPSEntryPoint: opts.HTTPSEntryPoint,
			CertResolver:    opts.CertResolver,
			CertDomains:     slices.Clone(opts.CertDomains),
			ChallengeURL:    opts.ChallengeURL,
		},
	}
	if p.root == "" {
		p.root = "traefik"
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	if p.mapping.Deployment == "" {
		p.mapping.Deployment = "webspaced"
	}
	if err := p.mapping.Validate(); err != nil {
		return nil, err
	}
	if strings.Join(parts(p.root), "/") != p.root {
		return nil, fmt.Errorf("root key %q: %w", p.root, errdefs.ErrInvalidArgument)
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("address of Redis: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if opts.DB < 0 || opts.Timeout < 0 {
		return nil, fmt.Errorf("a database or timeout below 0: %w", errdefs.ErrInvalidArgument)
	}
	timeout := opts.Timeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	p.client = redis.NewClient(&redis.Options{
		Addr:                  address,
		Username:              opts.Username,
		Password:              opts.Password,
		DB:                    opts.DB,
		TLSConfig:             opts.TLS.Clone(),
		DialTimeout:           timeout,
		ReadTimeout:           timeout,
		WriteTimeout:          timeout,
		PoolTimeout:           timeout,
		ContextTimeoutEnabled: true,
		// The caller tries again, with a back-off.
		MaxRetries:    -1,
		DialerRetries: 1,
		// Nothing that a restricted user or another server that speaks the protocol might refuse.
		Protocol:                 2,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return p, nil
}

// Close closes the connections. It is idempotent; calls of other methods fail after it.
func (p *Provider) Close() error {
	if err := p.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return err
	}
	return nil
}

// Routes implements [provider.Provider].
//
// It also sees to it that Traefik is told of changes: Redis forgets at a restart to tell anybody (its setting
// notify-keyspace-events), and Traefik only asks for it when it starts itself. Where the setting can not be read or
// changed, a warning says so, as it does for each key of others that keeps Traefik from taking anything over.
func (p *Provider) Routes(ctx context.Context) ([]provider.Route, error) {
	restored, err := p.notify(ctx)
	if err != nil {
		return nil, classed(ctx, err)
	}
	since := p.memory.now()
	stored, err := p.values(ctx, "")
	if err != nil {
		return nil, classed(ctx, err)
	}
	ours := make(map[string]entries)
	foreign := make(entries)
	for key, value := range stored {
		name, ok := p.owner(key)
		switch {
		case !ok:
			foreign[key] = value
		case ours[name] == nil:
			ours[name] = entries{key: value}
		default:
			ours[name][key] = value
		}
	}
	key, value := p.sentinel()
	if restored || foreign[key] != value {
		if err := p.client.Set(ctx, key, value, 0).Err(); err != nil {
			return nil, classed(ctx, err)
		}
	}
	p.warnOfPoison(foreign)

	routes := make([]provider.Route, 0, len(ours))
	whole := make(map[string][]string, len(ours))
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := p.decode(name, ours[name])
		whole[name] = nil
		if r.Backend != "" {
			whole[name] = slices.Collect(maps.Keys(ours[name]))
		}
		routes = append(routes, r)
	}
	p.memory.replace(whole, since)
	return routes, nil
}

// writers is how many routes are written at a time.
const writers = 8

// Apply implements [provider.Provider]. A route is changed in one transaction, and values that stand are not written. It
// looks through all keys of the database for those of a route that is deleted or that Routes has not found whole before.
func (p *Provider) Apply(ctx context.Context, changes provider.Changes) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := make([]error, len(changes.Put)+len(changes.Delete)+1)
	wanted := make(map[string]entries, len(changes.Put)+len(changes.Delete))
	place := make(map[string]int, len(wanted)) // of the error
	for i, r := range changes.Put {
		want, err := p.want(r)
		if err != nil {
			errs[i] = &provider.RouteError{Route: r.Name, Err: err}
			continue
		}
		wanted[r.Name], place[r.Name] = want, i
	}
	for i, name := range changes.Delete {
		if provider.IsLabel(name) { // no other can stand
			wanted[name], place[name] = nil, len(changes.Put)+i
		}
	}
	if len(wanted) == 0 {
		return errors.Join(errs...)
	}
	stored, err := p.standing(ctx, wanted)
	if err != nil {
		return classed(ctx, err)
	}

	var group errgroup.Group
	group.SetLimit(writers)
	for name, want := range wanted {
		if errs[len(errs)-1] = ctx.Err(); ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			err := classed(ctx, p.write(ctx, stored[name], want))
			p.memory.note(name, want, err)
			if err != nil {
				errs[place[name]] = &provider.RouteError{Route: name, Err: err}
			}
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

func (p *Provider) want(r provider.Route) (entries, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if err := p.mapping.Check(r); err != nil {
		return nil, err
	}
	want, err := p.encode(r)
	if err != nil {
		return nil, err
	}
	// A key that Traefik can not read would hold up the changes of everybody.
	if !p.decode(r.Name, want).Equal(r) {
		return nil, fmt.Errorf("the keys would say another route: %w", errdefs.ErrInvalidArgument)
	}
	return want, nil
}

// standing returns what stands of these routes.
func (p *Provider) standing(ctx context.Context, wanted map[string]entries) (map[string]entries, error) {
	var stored entries
	var err error
	if keys, certain := p.memory.keys(wanted); certain {
		stored, err = p.get(ctx, keys)
	} else {
		only := ""
		if len(wanted) == 1 {
			for only = range wanted {
			}
		}
		stored, err = p.values(ctx, only)
	}
	if err != nil {
		return nil, err
	}
	standing := make(map[string]entries, len(wanted))
	for key, value := range stored {
		name, ok := p.owner(key)
		if _, asked := wanted[name]; !ok || !asked {
			continue
		}
		if standing[name] == nil {
			standing[name] = make(entries)
		}
		standing[name][key] = value
	}
	return standing, nil
}

// write turns what stands of a route into what is wanted.
//
// Traefik reads in two steps, first the names of keys and then all values at once, so that it may miss keys that are new,
// any of them. It always sees those that stay, with the old values or with the new ones, and whoever changes just a backend
// has no others.
func (p *Provider) write(ctx context.Context, stands, want entries) error {
	var set []any
	var drop []string
	for key, value := range want {
		if have, ok := stands[key]; !ok || have != value {
			set = append(set, key, value)
		}
	}
	for key := range stands {
		if _, ok := want[key]; !ok {
			drop = append(drop, key)
		}
	}
	if len(set) == 0 && len(drop) == 0 {
		return nil
	}
	_, err := p.client.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		key, value := p.sentinel()
		tx.SetNX(ctx, key, value, 0) // it may have been emptied meanwhile
		if len(set) > 0 {
			tx.MSet(ctx, set...)
		}
		if len(drop) > 0 {
			tx.Del(ctx, drop...)
		}
		return nil
	})
	return err
}
