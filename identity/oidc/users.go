package oidc

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

// maxUsers bounds how many users are remembered.
const maxUsers = 50_000

// users remembers who has shown a token, and whom it was told of. The zero value is empty.
type users struct {
	mu   sync.RWMutex
	byID map[identity.UserID]known
}

// known is what is known of a user.
type known struct {
	user    identity.User
	issued  time.Time // of the newest token; zero if there was none
	learned string    // the username it was last told
}

// see remembers a user from a token. An older token than the last one says nothing new.
func (u *users) see(user identity.User, issued time.Time) {
	user.SSHKeys = slices.Clone(user.SSHKeys)
	user.Expires = time.Time{}
	u.mu.Lock()
	defer u.mu.Unlock()
	k := u.byID[user.ID]
	if issued.After(k.issued) {
		u.put(user.ID, known{user, issued, k.learned})
	}
}

// Learn implements [identity.Learner]. A username that differs from the last one it was told has changed since: somebody
// else has seen a newer token.
func (u *users) Learn(id identity.UserID, username string) {
	if id <= 0 || username == "" {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	k := u.byID[id]
	if k.learned == username {
		return
	}
	k.user.ID, k.user.Username, k.learned = id, username, username
	u.put(id, k)
}

// put stores what is known of a user, and forgets somebody if there are too many. The caller holds mu.
func (u *users) put(id identity.UserID, k known) {
	if u.byID == nil {
		u.byID = make(map[identity.UserID]known)
	}
	if _, ok := u.byID[id]; !ok && len(u.byID) >= maxUsers {
		for other := range u.byID {
			delete(u.byID, other)
			break
		}
	}
	u.byID[id] = k
}

// ByID implements [identity.Directory]. Unavailable for a user who has not been seen; never NotFound.
func (u *users) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	k, ok := u.byID[id]
	if !ok {
		return identity.User{}, errUnseen
	}
	return k.copy(), nil
}

// ByUsername implements [identity.Directory]. Usernames are compared byte for byte. Of several users who have had this
// username, it is the one with the newest token; Unavailable if none has shown one, or nobody is known by that name.
func (u *users) ByUsername(ctx context.Context, username string) (identity.User, error) {
	if err := ctx.Err(); err != nil {
		return identity.User{}, err
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	var best known
	ambiguous := false
	for _, k := range u.byID {
		switch {
		case k.user.Username != username:
		case best.user.ID == 0 || k.issued.After(best.issued):
			best, ambiguous = k, false
		case k.issued.Equal(best.issued):
			ambiguous = true
		}
	}
	if best.user.ID == 0 || ambiguous {
		return identity.User{}, errUnseen
	}
	return best.copy(), nil
}

func (k known) copy() identity.User {
	k.user.SSHKeys = slices.Clone(k.user.SSHKeys)
	return k.user
}

var errUnseen = fmt.Errorf("this user has not been seen, and the provider can not be asked: %w", errdefs.ErrUnavailable)
