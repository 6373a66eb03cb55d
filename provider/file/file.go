// Package file is a route provider for Traefik's file provider: one file for each route in a directory that Traefik
// watches.
//
//	p, err := file.New("/etc/traefik/webspaces", nil)
//
// With Traefik's static configuration: --providers.file.directory=/etc/traefik/webspaces. Traefik reads the whole
// directory again after each change, so keep to some thousand routes, and it takes over nothing new while any file in
// the directory is malformed, whoever wrote that one.
//
// Files can be read by everybody, but for those with the private key of a certificate in them: these have the directory's
// group, which alone may read them. So give the directory to the group that Traefik runs in (chgrp traefik), and have
// webspaced be root or in that group itself.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/internal/traefik"
)

// Options say what the files contain. The zero value suits a Traefik that terminates no TLS.
type Options struct {
	// Deployment marks what is ours: deployments of different names can share a directory. A DNS label; empty:
	// "webspaced".
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

// Provider writes routes to a directory. It implements [provider.Provider].
type Provider struct {
	dir     string
	mapping traefik.Mapping
}

var _ provider.Provider = (*Provider)(nil)

// New returns a Provider on a directory, which has to exist, and clears it of what an earlier Provider of the same
// deployment left unfinished. Errors: InvalidArgument for options, NotFound, PermissionDenied, Unavailable.
func New(dir string, opts *Options) (*Provider, error) {
	if opts == nil {
		opts = &Options{}
	}
	p := &Provider{dir: dir, mapping: traefik.Mapping{
		Deployment:      opts.Deployment,
		HTTPEntryPoint:  opts.HTTPEntryPoint,
		HTTPSEntryPoint: opts.HTTPSEntryPoint,
		CertResolver:    opts.CertResolver,
		CertDomains:     slices.Clone(opts.CertDomains),
		ChallengeURL:    opts.ChallengeURL,
	}}
	if opts.Deployment == "" {
		p.mapping.Deployment = "webspaced"
	}
	if err := p.mapping.Validate(); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	} else if err != nil {
		return nil, classed(err)
	}
	defer root.Close()
	if err := p.makeStage(root); err != nil {
		return nil, classed(err)
	}
	if err := p.clear(root); err != nil {
		return nil, classed(err)
	}
	return p, nil
}

// Routes implements [provider.Provider]. A file that can not be read for lack of permission is returned as a route that
// differs, so that Apply says why it can not be written.
func (p *Provider) Routes(ctx context.Context) ([]provider.Route, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, classed(err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, classed(err)
	}
	var routes []provider.Route
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name, ok := p.routeName(entry.Name())
		if !ok {
			continue
		}
		content, err := p.read(root, name)
		switch {
		case err == nil:
			routes = append(routes, p.decode(name, content))
		case errors.Is(err, fs.ErrPermission):
			routes = append(routes, provider.Route{Name: name})
		case errors.Is(err, fs.ErrNotExist), errdefs.IsAlreadyExists(err):
		default:
			return nil, classed(err)
		}
	}
	return routes, nil
}

const (
	// writers is how many files are written at a time.
	writers = 16
	// batch is how many are made before they all are moved to where Traefik sees them.
	batch = 1000
)

// Apply implements [provider.Provider]. A file that says what it should already is not written.
func (p *Provider) Apply(ctx context.Context, changes provider.Changes) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return classed(err)
	}
	defer root.Close()

	var errs []error
	for puts := range slices.Chunk(changes.Put, batch) {
		errs = append(errs, p.put(ctx, root, puts)...)
	}
	errs = append(errs, each(ctx, changes.Delete, func(_ int, name string) error {
		return failed(name, p.delete(root, name))
	})...)
	if ctx.Err() != nil {
		errs = append(errs, ctx.Err())
	}
	return errors.Join(errs...)
}

// each calls do for all, some at a time, until ctx ends.
func each[T any](ctx context.Context, all []T, do func(int, T) error) []error {
	errs := make([]error, len(all))
	var group errgroup.Group
	group.SetLimit(writers)
	for i, one := range all {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			errs[i] = do(i, one)
			return nil
		})
	}
	_ = group.Wait()
	return errs
}

func failed(route string, err error) error {
	if err == nil {
		return nil
	}
	return &provider.RouteError{Route: route, Err: err}
}

// put makes the files of routes, and moves them into place when all are on the disk. Without that, a power failure can
// leave a file of the right name with half a route in it, or with none.
func (p *Provider) put(ctx context.Context, root *os.Root, routes []provider.Route) []error {
	staged := make([]string, len(routes))
	errs := each(ctx, routes, func(i int, r provider.Route) (err error) {
		staged[i], err = p.prepare(root, r, len(routes) == 1 || !flushes)
		return failed(r.Name, err)
	})
	if ctx.Err() == nil && flushes && len(routes) > 1 && slices.ContainsFunc(staged, func(temp string) bool { return temp != "" }) {
		// One flush of the file system takes far less time than one of each file.
		if err := flush(root); err != nil {
			for i, temp := range staged {
				if temp != "" {
					errs[i] = failed(routes[i].Name, classed(err))
				}
			}
		}
	}
	for i, temp := range staged {
		if temp == "" {
			continue
		}
		if errs[i] == nil && ctx.Err() == nil {
			errs[i] = failed(routes[i].Name, classed(root.Rename(temp, p.fileName(routes[i].Name))))
		}
		if errs[i] != nil || ctx.Err() != nil {
			_ = root.Remove(temp)
		}
	}
	return errs
}

// prepare makes the file of a route where Traefik does not see it, and returns its name; none if it stands already.
func (p *Provider) prepare(root *os.Root, r provider.Route, sync bool) (temp string, err error) {
	if err := r.Validate(); err != nil {
		return "", err
	}
	if err := p.mapping.Check(r); err != nil {
		return "", err
	}
	want, err := p.encode(r)
	if err != nil {
		return "", err
	}
	have, err := p.read(root, r.Name)
	if err == nil && bytes.Equal(have, want) {
		return "", nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", classed(err)
	}
	if err := p.check(r, want); err != nil {
		return "", err
	}
	secret := slices.ContainsFunc(r.Certificates, func(c provider.Certificate) bool { return c.Key != "" })
	temp, err = p.make(root, r.Name, want, secret, sync)
	return temp, classed(err)
}

func (p *Provider) delete(root *os.Root, name string) error {
	if !provider.IsLabel(name) {
		return nil // no such route can stand, and as a file name it might mean another directory
	}
	_, err := p.read(root, name)
	if err == nil {
		err = root.Remove(p.fileName(name))
	}
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsAlreadyExists(err) {
		return nil // none of ours is there
	}
	return classed(err)
}

// fileName of a route. Labels have no dots: the deployments "web" and "web-1" can not be mistaken for one another.
func (p *Provider) fileName(route string) string { return p.mapping.Deployment + "." + route + ".yml" }

func (p *Provider) routeName(fileName string) (string, bool) {
	name, _ := strings.CutPrefix(fileName, p.mapping.Deployment+".")
	name, _ = strings.CutSuffix(name, ".yml")
	return name, provider.IsLabel(name) && p.fileName(name) == fileName
}

// classed gives errors of the file system a class.
func classed(err error) error {
	switch {
	case err == nil, errdefs.IsAlreadyExists(err):
		return err
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", errdefs.ErrPermissionDenied, err)
	}
	return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
}
