package identity

import (
	"container/list"
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// CacheOptions are options of [NewCache]. The zero value of each is its default.
type CacheOptions struct {
	// TTL is how long an answer is used again, counted from when the question was asked [30s]. So long a user who was
	// logged out or demoted at the provider may go on; and so long users that were seen before go on while the provider is
	// out of reach.
	TTL time.Duration
	// Size is how many answers are kept; those that were not used for longest go first [10000].
	Size int
}

// failureTTL is how long a refusal, or that the provider is out of reach, is taken for granted: long enough to answer a
// burst of the same question once.
const failureTTL = time.Second

// Cache remembers for a short time what an identity provider has answered. Of several askers of the same thing one asks
// the provider, and the others wait for the answer. No token is kept: only its SHA-256. An answer to a token is not used
// after the token's end. A [Learner] needs no cache, and would not be told of users behind one. Cache is safe for concurrent
// use.
type Cache struct {
	auth      Authenticator
	directory Directory
	ttl       time.Duration
	size      int

	mu      sync.Mutex
	entries map[cacheKey]*list.Element // of *answer
	recent  list.List                  // the most recently used first
}

var (
	_ Authenticator = (*Cache)(nil)
	_ Directory     = (*Cache)(nil)
)

type question byte

const (
	whoseToken question = iota
	whoHasID
	whoIsCalled
)

type cacheKey struct {
	question question
	sum      [sha256.Size]byte
}

// answer is what the provider has said. turn is held by who asks it; the rest is guarded by Cache.mu.
type answer struct {
	key   cacheKey
	turn  chan struct{} // one value while somebody asks
	until time.Time     // how long it holds; zero before the first
	user  User
	err   error
}

// NewCache returns a cache of what auth and directory say.
func NewCache(auth Authenticator, directory Directory, opts *CacheOptions) *Cache {
	var o CacheOptions
	if opts != nil {
		o = *opts
	}
	if o.TTL <= 0 {
		o.TTL = 30 * time.Second
	}
	if o.Size <= 0 {
		o.Size = 10_000
	}
	return &Cache{auth: auth, directory: directory, ttl: o.TTL, size: o.Size, entries: make(map[cacheKey]*list.Element)}
}

// Authenticate implements [Authenticator].
func (c *Cache) Authenticate(ctx context.Context, token string) (User, error) {
	return c.ask(ctx, whoseToken, token, func() (User, error) { return c.auth.Authenticate(ctx, token) })
}

// ByID implements [Directory].
func (c *Cache) ByID(ctx context.Context, id UserID) (User, error) {
	return c.ask(ctx, whoHasID, id.String(), func() (User, error) { return c.directory.ByID(ctx, id) })
}

// ByUsername implements [Directory].
func (c *Cache) ByUsername(ctx context.Context, username string) (User, error) {
	return c.ask(ctx, whoIsCalled, username, func() (User, error) { return c.directory.ByUsername(ctx, username) })
}

func (c *Cache) ask(ctx context.Context, q question, about string, provider func() (User, error)) (User, error) {
	if err := ctx.Err(); err != nil {
		return User{}, err
	}
	a := c.answer(cacheKey{q, sha256.Sum256([]byte(about))})
	if user, err, ok := c.current(a); ok {
		return user, err
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return User{}, ctx.Err()
	}
	if user, err, ok := c.current(a); ok {
		return user, err // somebody else has asked meanwhile
	}
	asked := time.Now()
	user, err := provider()
	c.store(ctx, a, user, err, asked)
	return user, err
}

// answer returns the entry of a question, which may be empty as yet.
func (c *Cache) answer(key cacheKey) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, ok := c.entries[key]; ok {
		c.recent.MoveToFront(element)
		return element.Value.(*answer)
	}
	for len(c.entries) >= c.size {
		oldest := c.recent.Remove(c.recent.Back()).(*answer)
		delete(c.entries, oldest.key)
	}
	a := &answer{key: key, turn: make(chan struct{}, 1)}
	c.entries[key] = c.recent.PushFront(a)
	return a
}

// current returns the answer if there is one that holds.
func (c *Cache) current(a *answer) (User, error, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !now.Before(a.until) || !a.user.Expires.IsZero() && !now.Before(a.user.Expires) {
		return User{}, nil, false
	}
	user := a.user
	user.SSHKeys = slices.Clone(user.SSHKeys)
	return user, a.err, true
}

func (c *Cache) store(ctx context.Context, a *answer, user User, err error, asked time.Time) {
	user.SSHKeys = slices.Clone(user.SSHKeys)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		a.user, a.err, a.until = user, nil, asked.Add(c.ttl)
	case ctx.Err() != nil:
		// The asker has gone; whoever waits asks anew.
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsUnavailable(err):
		// From now on, because a provider that is away may have taken long to say so.
		a.user, a.err, a.until = User{}, err, time.Now().Add(min(failureTTL, c.ttl))
	}
}
