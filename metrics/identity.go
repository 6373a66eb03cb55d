package metrics

import (
	"context"
	"time"

	"github.com/netsoc/webspaced/identity"
)

const (
	opAuthenticate = "authenticate"
	opByID         = "by_id"
	opByUsername   = "by_username"
)

// Authenticator measures auth. The result is an [identity.Refresher] if auth is one. It goes below an [identity.Cache], so
// that it is the provider that is measured.
func (m *Metrics) Authenticator(auth identity.Authenticator) identity.Authenticator {
	a := authenticator{m, auth}
	if refresher, ok := auth.(identity.Refresher); ok {
		return struct {
			authenticator
			identity.Refresher
		}{a, freshAuthenticator{m, refresher}}
	}
	return a
}

// Directory measures directory. The result is an [identity.Learner] if directory is one.
func (m *Metrics) Directory(dir identity.Directory) identity.Directory {
	d := directory{m, dir}
	if learner, ok := dir.(identity.Learner); ok {
		return struct {
			directory
			identity.Learner
		}{d, learner}
	}
	return d
}

type authenticator struct {
	metrics *Metrics
	next    identity.Authenticator
}

func (a authenticator) Authenticate(ctx context.Context, token string) (identity.User, error) {
	return a.metrics.ask(opAuthenticate, func() (identity.User, error) { return a.next.Authenticate(ctx, token) })
}

type freshAuthenticator struct {
	metrics *Metrics
	next    identity.Refresher
}

func (a freshAuthenticator) Fresh(ctx context.Context, token string) (identity.User, error) {
	return a.metrics.ask(opAuthenticate, func() (identity.User, error) { return a.next.Fresh(ctx, token) })
}

type directory struct {
	metrics *Metrics
	next    identity.Directory
}

func (d directory) ByID(ctx context.Context, id identity.UserID) (identity.User, error) {
	return d.metrics.ask(opByID, func() (identity.User, error) { return d.next.ByID(ctx, id) })
}

func (d directory) ByUsername(ctx context.Context, username string) (identity.User, error) {
	return d.metrics.ask(opByUsername, func() (identity.User, error) { return d.next.ByUsername(ctx, username) })
}

func (m *Metrics) ask(operation string, provider func() (identity.User, error)) (identity.User, error) {
	began := time.Now()
	user, err := provider()
	m.identity.WithLabelValues(operation, resultOf(err)).Observe(time.Since(began).Seconds())
	return user, err
}
