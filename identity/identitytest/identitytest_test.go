package identitytest_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/identitytest"
)

// provider is as it should be, unless it has a defect.
type provider struct {
	users  map[string]identity.User
	away   atomic.Bool
	hung   atomic.Bool
	defect defect
}

// defect has what stands for a method, if it is set.
type defect struct {
	authenticate func(p *provider, ctx context.Context, token string) (identity.User, error)
	find         func(p *provider, ctx context.Context, match func(identity.User) bool) (identity.User, error)
	byUsername   func(p *provider, ctx context.Context, name string) (identity.User, error)
}

func (p *provider) ready(ctx context.Context) error {
	if p.hung.Load() {
		<-ctx.Done()
	}
	if p.away.Load() {
		return errdefs.ErrUnavailable
	}
	return ctx.Err()
}

func (p *provider) Authenticate(ctx context.Context, token string) (identity.User, error) {
	if p.defect.authenticate != nil {
		return p.defect.authenticate(p, ctx, token)
	}
	return p.authenticate(ctx, token)
}

func (p *provider) authenticate(ctx context.Context, token string) (identity.User, error) {
	if err := p.ready(ctx); err != nil {
		return identity.User{}, err
	}
	u, ok := p.users[token]
	if !ok {
		return identity.User{}, errdefs.ErrUnauthenticated
	}
	u.SSHKeys = slices.Clone(u.SSHKeys)
	return u, nil
}

func (p *provider) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	return p.find(ctx, func(u identity.User) bool { return u.ID == id })
}

func (p *provider) ByUsername(ctx context.Context, name string) (identity.User, error) {
	if p.defect.byUsername != nil {
		return p.defect.byUsername(p, ctx, name)
	}
	return p.find(ctx, func(u identity.User) bool { return u.Username == name })
}

func (p *provider) find(ctx context.Context, match func(identity.User) bool) (identity.User, error) {
	if p.defect.find != nil {
		return p.defect.find(p, ctx, match)
	}
	return p.search(ctx, match)
}

func (p *provider) search(ctx context.Context, match func(identity.User) bool) (identity.User, error) {
	if err := p.ready(ctx); err != nil {
		return identity.User{}, err
	}
	for _, u := range p.users {
		if match(u) {
			u.SSHKeys = slices.Clone(u.SSHKeys)
			return u, nil
		}
	}
	return identity.User{}, errdefs.ErrNotFound
}

func harness(d defect) identitytest.Harness {
	return identitytest.Harness{New: func(*testing.T) identitytest.Fixture {
		p := &provider{defect: d, users: map[string]identity.User{
			"a-token-of-alice": {ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA"}},
			"a-token-of-root":  {ID: 1, Username: "root", Admin: true},
		}}
		return identitytest.Fixture{
			Auth: p, Directory: p, Users: maps.Clone(p.users),
			Away: func() { p.away.Store(true) }, Hang: func() { p.hung.Store(true) },
		}
	}}
}

func TestSoundProvider(t *testing.T) { identitytest.Run(t, harness(defect{})) }

var defects = map[string]defect{
	"takes tokens with spaces": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		return p.authenticate(ctx, strings.TrimSpace(token))
	}},
	"takes the beginning of a token": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		for whole := range p.users {
			if len(token) > 5 && strings.HasPrefix(whole, token) {
				return p.authenticate(ctx, whole)
			}
		}
		return p.authenticate(ctx, token)
	}},
	"repeats the token in errors": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if err != nil {
			err = fmt.Errorf("%s: %w", token, err)
		}
		return u, err
	}},
	"has not found a bad token": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if errdefs.IsUnauthorized(err) {
			err = errdefs.ErrNotFound
		}
		return u, err
	}},
	"refuses while it is away": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if errdefs.IsUnavailable(err) {
			err = errdefs.ErrUnauthenticated
		}
		return u, err
	}},
	"is away when its caller is": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if ctx.Err() != nil {
			err = errdefs.ErrUnavailable
		}
		return u, err
	}},
	"does not look at the context": {find: func(p *provider, _ context.Context, match func(identity.User) bool) (identity.User, error) {
		return p.search(context.Background(), match)
	}},
	"shares its keys": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		if _, err := p.authenticate(ctx, token); err != nil {
			return identity.User{}, err
		}
		return p.users[token], nil
	}},
	"takes tokens that have ended": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if err == nil {
			u.Expires = time.Now().Add(-time.Second)
		}
		return u, err
	}},
	"gives a user with an error": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		if err != nil {
			u.ID = 1000
		}
		return u, err
	}},
	"forgets who is an admin": {authenticate: func(p *provider, ctx context.Context, token string) (identity.User, error) {
		u, err := p.authenticate(ctx, token)
		u.Admin = false
		return u, err
	}},
	"knows itself as self": {byUsername: func(p *provider, ctx context.Context, name string) (identity.User, error) {
		return p.search(ctx, func(u identity.User) bool { return u.Username == name || name == "self" && u.Admin })
	}},
	"takes IDs for usernames": {byUsername: func(p *provider, ctx context.Context, name string) (identity.User, error) {
		return p.search(ctx, func(u identity.User) bool { return u.Username == name || "id:"+u.ID.String() == name })
	}},
	"finds nobody while it is away": {find: func(p *provider, ctx context.Context, match func(identity.User) bool) (identity.User, error) {
		u, err := p.search(ctx, match)
		if errdefs.IsUnavailable(err) {
			err = errdefs.ErrNotFound
		}
		return u, err
	}},
	"is away for who is not there": {find: func(p *provider, ctx context.Context, match func(identity.User) bool) (identity.User, error) {
		u, err := p.search(ctx, match)
		if errdefs.IsNotFound(err) {
			err = errdefs.ErrUnavailable
		}
		return u, err
	}},
}

// Each defect makes the suite fail. A suite that fails does so for its whole test, so that each runs as another process.
func TestDefectsAreFound(t *testing.T) {
	const variable = "IDENTITYTEST_DEFECT"
	if name, ok := os.LookupEnv(variable); ok {
		identitytest.Run(t, harness(defects[name]))
		return
	}
	for name := range defects {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDefectsAreFound$", "-test.timeout=30s")
			cmd.Env = append(os.Environ(), variable+"="+name)
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "the suite finds nothing wrong")
			require.Contains(t, string(out), "--- FAIL", "%s", out)
			require.NotContains(t, string(out), "panic:", "%s", out)
		})
	}
}
