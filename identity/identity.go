// Package identity defines who uses webspaced: users, how a bearer token becomes a user, and how a user is looked up.
//
// A [User] is an account of the organisation's identity provider. Its ID never changes and keys everything that
// webspaced stores; its username may change at the provider and only ever gives the default domain its name.
//
// Backends implement [Authenticator] and [Directory]; identity/static is one that reads its users from a list.
package identity

import (
	"context"
	"strconv"
	"strings"
	"time"
)

// UserID is the numeric ID of a user at the identity provider. Valid IDs are positive.
type UserID int64

// String is the ID in decimal, as it stands in the instance's name.
func (id UserID) String() string { return strconv.FormatInt(int64(id), 10) }

// User is an account of the identity provider, as it was when it was asked.
type User struct {
	ID UserID
	// Username as the provider spells it. It is outside input: webspace.Label makes a DNS label of it, or refuses it.
	Username string
	// Admin users reach every webspace.
	Admin bool
	// SSHKeys are the public keys of the account, in authorized_keys format. Outside input as well.
	SSHKeys []string
	// Expires is when the token that this was learnt from ends; zero if that is not known, or if it was not a token.
	// What a user began with the token ends then as well.
	Expires time.Time
}

// Authenticator turns a bearer token into the user it belongs to.
//
// Implementations are safe for concurrent use. Errors are classes of github.com/containerd/errdefs:
//   - Unauthenticated: the token is missing, malformed, unknown, expired or revoked
//   - Unavailable: the provider could not be asked; never used for a refusal
//
// An implementation ends with ctx and returns its error.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (User, error)
}

// Refresher is an [Authenticator] that uses answers again, and can do without: what is open for long has to end when the
// user is logged out or demoted, and not when an answer has become old as well.
type Refresher interface {
	// Fresh is Authenticate with an answer to a question that was asked no earlier than now.
	Fresh(ctx context.Context, token string) (User, error)
}

// Directory looks users up.
//
// Implementations are safe for concurrent use and bound every call by a deadline of their own besides ctx. Errors:
//   - NotFound: the provider says that there is no such user
//   - Unavailable: the provider could not be asked; the user may well exist
type Directory interface {
	// ByID returns the user with this ID.
	ByID(ctx context.Context, id UserID) (User, error)
	// ByUsername returns the user with this username, compared as the provider compares them.
	ByUsername(ctx context.Context, username string) (User, error)
}

// Learner is a [Directory] that can not ask anybody: it knows those users whose tokens it has seen, and those that it was
// told of. Others are Unavailable to it, never NotFound.
type Learner interface {
	// Learn says what username a user had when somebody last knew. What a later token says goes before it.
	Learn(id UserID, username string)
}

// MaxToken bounds bearer tokens, in bytes. A longer one is nobody's.
const MaxToken = 8 << 10

// KeyLines returns the public keys in a text in authorized_keys format, without blank lines and comments.
func KeyLines(text string) []string {
	var keys []string
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	return keys
}
