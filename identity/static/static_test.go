package static_test

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/identitytest"
	"github.com/netsoc/webspaced/identity/static"
)

var accounts = []static.Account{
	{User: identity.User{ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA"}}, Token: "alices token"},
	{User: identity.User{ID: 1, Username: "admin", Admin: true}, Token: "admins token"},
}

func TestProvider(t *testing.T) {
	p, err := static.New(accounts)
	require.NoError(t, err)

	for _, a := range accounts {
		u, err := p.Authenticate(t.Context(), a.Token)
		require.NoError(t, err)
		require.Equal(t, a.User, u)
		u, err = p.ByID(t.Context(), a.User.ID)
		require.NoError(t, err)
		require.Equal(t, a.User, u)
		u, err = p.ByUsername(t.Context(), a.User.Username)
		require.NoError(t, err)
		require.Equal(t, a.User, u)
	}

	for _, token := range []string{"", "alice", "alices toke", "alices token ", "ALICES TOKEN", strings.Repeat("x", 1<<20)} {
		_, err := p.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnauthorized(err), "%v", err)
	}
	_, err = p.ByID(t.Context(), 2)
	require.True(t, errdefs.IsNotFound(err))
	_, err = p.ByUsername(t.Context(), "")
	require.True(t, errdefs.IsNotFound(err))
}

func TestConformance(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		p, err := static.New(accounts)
		require.NoError(t, err)
		users := make(map[string]identity.User)
		for _, a := range accounts {
			users[a.Token] = a.User
		}
		return identitytest.Fixture{Auth: p, Directory: p, Users: users}
	}})
}

func TestUsersAreCopies(t *testing.T) {
	p, err := static.New(accounts)
	require.NoError(t, err)
	u, err := p.ByID(t.Context(), 1000)
	require.NoError(t, err)
	u.SSHKeys[0] = "mallory's"
	u, err = p.ByID(t.Context(), 1000)
	require.NoError(t, err)
	require.Equal(t, "ssh-ed25519 AAAA", u.SSHKeys[0])
}

func TestContext(t *testing.T) {
	p, err := static.New(accounts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = p.Authenticate(ctx, "alices token")
	require.ErrorIs(t, err, context.Canceled)
	_, err = p.ByID(ctx, 1000)
	require.ErrorIs(t, err, context.Canceled)
}

func TestNewRefusesAllAtOnce(t *testing.T) {
	_, err := static.New([]static.Account{
		{User: identity.User{ID: 1, Username: "alice"}, Token: "secret"},
		{User: identity.User{ID: 1, Username: "Alice"}, Token: "secret"},
		{User: identity.User{ID: -1}},
	})
	require.True(t, errdefs.IsInvalidArgument(err))
	require.Equal(t, strings.Join([]string{
		`user 2 of the list: has the ID of user 1, 1: invalid argument`,
		`user 2 of the list: has the username of user 1, "Alice": invalid argument`,
		`user 2 of the list: has the token of user 1: invalid argument`,
		`user 3 of the list: the ID is not a positive number: invalid argument`,
		`user 3 of the list: the username is empty: invalid argument`,
		`user 3 of the list: the token is empty: invalid argument`,
	}, "\n"), err.Error())

	p, err := static.New(nil)
	require.NoError(t, err)
	_, err = p.Authenticate(t.Context(), "")
	require.True(t, errdefs.IsUnauthorized(err))
}

func ExampleNew() {
	_, err := static.New([]static.Account{
		{User: identity.User{ID: 1000, Username: "alice"}, Token: "a long random string"},
		{User: identity.User{ID: 1, Username: "admin", Admin: true}, Token: "another one"},
	})
	if err != nil {
		panic(err)
	}
	// Output:
}
