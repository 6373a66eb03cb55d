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
	// Size is how many users are kept; those that were not used for longest go first [10000].
	Size int
}

const (
	// failureTTL is how long a refusal, or that the provider is out of reach, is taken for granted: long enough to answer a
	// burst of the same question once.
	failureTTL = time.Second
	// maxFailures is how many such are kept.
	maxFailures = 1000
)

// Cache remembers for a short time what an identity provider has answered. Of several askers of the same thing one asks
// the provider, and the others wait for the answer. No token is kept: only its SHA-256. An answer to a token is not used
// after the token's end. Refusals are kept apart, so that made-up tokens push no user out. A [Learner] needs no cache, and
// would not be told of users behind one. Cache is safe for concurrent use.
type Cache struct {
	auth      Authenticator
	directory Directory
	ttl       time.Duration

	mu       sync.Mutex
	users    answers
	failures answers
	flights  map[cacheKey]*flight
}

var (
	_ Authenticator = (*Cache)(nil)
	_ Directory     = (*Cache)(nil)
	_ Refresher     = (*Cache)(nil)
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

// answer is what the provider has said.
type answer struct {
	key   cacheKey
	asked time.Time
	until time.Time // how long it holds
	user  User
	err   error
}

// answers are the answers that were last used, up to so many.
type answers struct {
	size   int
	byKey  map[cacheKey]*list.Element // of *answer
	recent list.List                  // the most recently used first
}

func (as *answers) get(key cacheKey) *answer {
	element, ok := as.byKey[key]
	if !ok {
		return nil
	}
	as.recent.MoveToFront(element)
	return element.Value.(*answer)
}

func (as *answers) put(a *answer) {
	as.remove(a.key)
	if len(as.byKey) >= as.size {
		as.remove(as.recent.Back().Value.(*answer).key)
	}
	as.byKey[a.key] = as.recent.PushFront(a)
}

func (as *answers) remove(key cacheKey) {
	if element, ok := as.byKey[key]; ok {
		as.recent.Remove(element)
		delete(as.byKey, key)
	}
}

// flight is those who ask the same at the same time. turn is held by the one who asks the provider.
type flight struct {
	turn   chan struct{}
	askers int // guarded by Cache.mu
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
	return &Cache{
		auth: auth, directory: directory, ttl: o.TTL,
		users:    answers{size: o.Size, byKey: make(map[cacheKey]*list.Element)},
		failures: answers{size: maxFailures, byKey: make(map[cacheKey]*list.Element)},
		flights:  make(map[cacheKey]*flight),
	}
}

// Authenticate implements [Authenticator].
func (c *Cache) Authenticate(ctx context.Context, token string) (User, error) {
	return c.ask(ctx, whoseToken, token, time.Time{}, func() (User, error) { return c.auth.Authenticate(ctx, token) })
}

// Fresh implements [Refresher]. Those who come while the provider is being asked share the next question. A provider that
// is out of reach takes nothing away from what was known.
func (c *Cache) Fresh(ctx context.Context, token string) (User, error) {
	return c.ask(ctx, whoseToken, token, time.Now(), func() (User, error) { return c.auth.Authenticate(ctx, token) })
}

// ByID implements [Directory].
func (c *Cache) ByID(ctx context.Context, id UserID) (User, error) {
	return c.ask(ctx, whoHasID, id.String(), time.Time{}, func() (User, error) { return c.directory.ByID(ctx, id) })
}

// ByUsername implements [Directory].
func (c *Cache) ByUsername(ctx context.Context, username string) (User, error) {
	return c.ask(ctx, whoIsCalled, username, time.Time{}, func() (User, error) { return c.directory.ByUsername(ctx, username) })
}

// ask uses no answer to a question from before since.
func (c *Cache) ask(ctx context.Context, q question, about string, since time.Time, provider func() (User, error)) (User, error) {
	if err := ctx.Err(); err != nil {
		return User{}, err
	}
	key := cacheKey{q, sha256.Sum256([]byte(about))}
	if user, err, ok := c.current(key, since); ok {
		return user, err
	}
	f := c.join(key)
	defer c.leave(key, f)
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return User{}, ctx.Err()
	}
	if user, err, ok := c.current(key, since); ok {
		return user, err // somebody else has asked meanwhile
	}
	asked := time.Now()
	user, err := provider()
	c.store(ctx, key, user, err, asked)
	return user, err
}

func (c *Cache) join(key cacheKey) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.flights[key]
	if !ok {
		f = &flight{turn: make(chan struct{}, 1)}
		c.flights[key] = f
	}
	f.askers++
	return f
}

func (c *Cache) leave(key cacheKey, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.askers--; f.askers == 0 {
		delete(c.flights, key)
	}
}

// current returns the answer if there is one that holds, to a question from after since.
func (c *Cache) current(key cacheKey, since time.Time) (User, error, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, kept := range []*answers{&c.users, &c.failures} {
		a := kept.get(key)
		if a == nil || !a.asked.After(since) || !now.Before(a.until) || !a.user.Expires.IsZero() && !now.Before(a.user.Expires) {
			continue
		}
		user := a.user
		user.SSHKeys = slices.Clone(user.SSHKeys)
		return user, a.err, true
	}
	return User{}, nil, false
}

func (c *Cache) store(ctx context.Context, key cacheKey, user User, err error, asked time.Time) {
	user.SSHKeys = slices.Clone(user.SSHKeys)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.failures.remove(key)
		c.users.put(&answer{key: key, user: user, asked: asked, until: asked.Add(c.ttl)})
		return
	}
	refused := errdefs.IsNotFound(err) || errdefs.IsUnauthorized(err)
	if ctx.Err() != nil || !refused && !errdefs.IsUnavailable(err) {
		return // the asker has gone, or nothing is said about the user; whoever waits asks anew
	}
	if refused {
		c.users.remove(key)
	}
	// From now on, because a provider that is away may have taken long to say so.
	c.failures.put(&answer{key: key, err: err, asked: asked, until: time.Now().Add(min(failureTTL, c.ttl))})
}
