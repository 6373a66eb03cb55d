package access

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
)

var errExpired = fmt.Errorf("the token has expired: %w", errdefs.ErrUnauthenticated)

// Session is [Gate.Write] for as long as the actor may: the context that it returns is done, with the reason as its
// cause, when ctx is, when the actor's token expires or is revoked, or when the actor may no longer reach this
// webspace. The identity provider itself is asked anew each interval, whatever an [identity.Refresher] remembers of it;
// while it is out of reach nothing changes.
//
// stop ends the session and waits for what belongs to it. It has to be called once.
func (g *Gate) Session(ctx context.Context, username string, interval time.Duration) (w Writer, session context.Context, stop func(), err error) {
	w, err = g.Write(ctx, username)
	if err != nil {
		return Writer{}, nil, nil, err
	}
	from, _ := ctx.Value(actorKey{}).(caller)
	session, end := context.WithCancelCause(ctx)
	expire := context.CancelFunc(func() {})
	if at := from.user.Expires; !at.IsZero() {
		session, expire = context.WithDeadlineCause(session, at, errExpired)
	}
	authenticate := g.auth.Authenticate
	if refresher, ok := g.auth.(identity.Refresher); ok {
		authenticate = refresher.Fresh
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-session.Done():
				return
			case <-tick.C:
			}
			actor, err := authenticate(session, from.token)
			if err == nil {
				err = authorize(actor, write, w.owner.ID)
			}
			if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
				end(err)
				return
			}
		}
	})
	return w, session, func() { end(context.Canceled); wg.Wait(); expire() }, nil
}
