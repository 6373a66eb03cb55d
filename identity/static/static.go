// Package static is an identity provider whose users are a list: for small groups, trying and tests.
package static

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

// Account is a user and the bearer token that stands for them.
type Account struct {
	User  identity.User
	Token string
}

// Provider knows a fixed list of users. It is an [identity.Authenticator] and an [identity.Directory] that is never
// out of reach. It is safe for concurrent use.
type Provider struct {
	tokens     []hashedToken
	byID       map[identity.UserID]identity.User
	byUsername map[string]identity.User
}

type hashedToken struct {
	sum  [sha256.Size]byte
	user identity.User
}

var (
	_ identity.Authenticator = (*Provider)(nil)
	_ identity.Directory     = (*Provider)(nil)
)

// New returns a provider of these accounts; the list may be empty. The error is that of [Check].
func New(accounts []Account) (*Provider, error) {
	if err := Check(accounts); err != nil {
		return nil, err
	}
	p := &Provider{
		byID:       make(map[identity.UserID]identity.User, len(accounts)),
		byUsername: make(map[string]identity.User, len(accounts)),
	}
	for _, a := range accounts {
		a.User.SSHKeys = slices.Clone(a.User.SSHKeys)
		p.tokens = append(p.tokens, hashedToken{sha256.Sum256([]byte(a.Token)), a.User})
		p.byID[a.User.ID] = a.User
		p.byUsername[a.User.Username] = a.User
	}
	return p, nil
}

// Check returns all reasons why accounts can not be told apart or used, joined, each InvalidArgument; none of them
// repeats a token. IDs are positive; usernames are not empty; no two accounts share an ID, a token or a username,
// in which case does not count because host names are made of usernames.
func Check(accounts []Account) error {
	var errs []error
	fail := func(i int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("user %d of the list: %s: %w", i+1, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument))
	}
	ids := make(map[identity.UserID]int)
	usernames, tokens := make(map[string]int), make(map[string]int)
	for i, a := range accounts {
		if a.User.ID <= 0 {
			fail(i, "the ID is not a positive number")
		} else if j, ok := ids[a.User.ID]; ok {
			fail(i, "has the ID of user %d, %s", j+1, a.User.ID)
		} else {
			ids[a.User.ID] = i
		}
		folded := strings.ToLower(a.User.Username)
		if folded == "" {
			fail(i, "the username is empty")
		} else if j, ok := usernames[folded]; ok {
			fail(i, "has the username of user %d, %q", j+1, a.User.Username)
		} else {
			usernames[folded] = i
		}
		if a.Token == "" {
			fail(i, "the token is empty")
		} else if j, ok := tokens[a.Token]; ok {
			fail(i, "has the token of user %d", j+1)
		} else {
			tokens[a.Token] = i
		}
	}
	return errors.Join(errs...)
}

// Authenticate implements [identity.Authenticator]. It compares the token's SHA-256 with that of every account, each in
// constant time: how long that takes says nothing about how near a guess was.
func (p *Provider) Authenticate(ctx context.Context, token string) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	sum := sha256.Sum256([]byte(token))
	found := -1
	for i := range p.tokens {
		if subtle.ConstantTimeCompare(sum[:], p.tokens[i].sum[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return identity.User{}, fmt.Errorf("unknown token: %w", errdefs.ErrUnauthenticated)
	}
	return clone(p.tokens[found].user), nil
}

// ByID implements [identity.Directory].
func (p *Provider) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	return find(ctx, p.byID, id)
}

// ByUsername implements [identity.Directory]. Usernames are compared byte for byte.
func (p *Provider) ByUsername(ctx context.Context, username string) (identity.User, error) {
	return find(ctx, p.byUsername, username)
}

func find[K comparable](ctx context.Context, users map[K]identity.User, key K) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	u, ok := users[key]
	if !ok {
		return identity.User{}, fmt.Errorf("no such user: %w", errdefs.ErrNotFound)
	}
	return clone(u), nil
}

// clone keeps the caller from changing the provider's users.
func clone(u identity.User) identity.User {
	u.SSHKeys = slices.Clone(u.SSHKeys)
	return u
}
