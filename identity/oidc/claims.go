package oidc

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netsoc/webspaced/identity"
)

// object is the claims of a token, or an object among them.
type object map[string]json.RawMessage

// claims says which claims describe a user.
type claims struct {
	username, id, admin, adminValue, sshKey string
}

// user returns the user whom the claims of a verified token describe, and when it was issued. That the token has not ended
// is known.
func (c claims) user(o object, now time.Time) (user identity.User, issued time.Time, err error) {
	// Decoders that do not care about case would take "AUD" for "aud": a token with both says nothing clear.
	for name := range o {
		for _, registered := range []string{"iss", "aud", "exp", "nbf", "iat", "sub"} {
			if name != registered && strings.EqualFold(name, registered) {
				return user, issued, refuse("the token has a claim that is nearly called %s", registered)
			}
		}
	}
	var ok bool
	if user.Expires, ok = o.time("exp"); !ok || user.Expires.IsZero() {
		return identity.User{}, issued, refuse("the token's end is not a time")
	}
	begins, ok := o.time("nbf")
	if !ok || begins.After(now.Add(maxSkew)) {
		return identity.User{}, issued, refuse("the token is not valid yet")
	}
	if issued, ok = o.time("iat"); !ok || issued.After(now.Add(maxSkew)) {
		return identity.User{}, issued, refuse("the token is from the future")
	}
	if issued.IsZero() {
		issued = now
	}
	if user.ID = userID(o.find(c.id)); user.ID <= 0 {
		return identity.User{}, issued, refuse("the token's claim %s is not a positive whole number", c.id)
	}
	if user.Username, ok = text(o.find(c.username)); !ok || user.Username == "" || len(user.Username) > 255 {
		return identity.User{}, issued, refuse("the token's claim %s is not a username", c.username)
	}
	if c.admin != "" {
		user.Admin = isAdmin(o.find(c.admin), c.adminValue)
	}
	if c.sshKey != "" {
		for _, lines := range texts(o.find(c.sshKey)) {
			user.SSHKeys = append(user.SSHKeys, identity.KeyLines(lines)...)
		}
	}
	return user, issued, nil
}

// find returns a claim: the one with this name, or else the one that the dots of the name lead to. Nil if there is none.
func (o object) find(name string) json.RawMessage {
	if value, ok := o[name]; ok {
		return value
	}
	first, rest, ok := strings.Cut(name, ".")
	if !ok {
		return nil
	}
	var inner object
	if json.Unmarshal(o[first], &inner) != nil {
		return nil
	}
	return inner.find(rest)
}

// time returns a claim that is a time; zero if there is none. Not ok if it is something else.
func (o object) time(name string) (t time.Time, ok bool) {
	value, ok := o[name]
	if !ok || string(value) == "null" {
		return t, true
	}
	seconds, err := strconv.ParseFloat(string(value), 64)
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return t, false
	}
	return time.Unix(int64(seconds), 0), true
}

// userID reads a whole number, or a text of decimal digits, which many directories make of it. Zero if it is neither.
func userID(value json.RawMessage) identity.UserID {
	digits := string(value)
	if s, ok := text(value); ok {
		digits = s
	}
	id, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || strconv.FormatInt(id, 10) != digits {
		return 0
	}
	return identity.UserID(id)
}

func isAdmin(value json.RawMessage, want string) bool {
	if want == "" {
		return string(value) == "true"
	}
	return slices.Contains(texts(value), want)
}

func text(value json.RawMessage) (s string, ok bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	return s, json.Unmarshal(value, &s) == nil
}

// texts returns the texts in a claim that is one or a list; other elements are left out.
func texts(value json.RawMessage) []string {
	if s, ok := text(value); ok {
		return []string{s}
	}
	var elements []json.RawMessage
	if json.Unmarshal(value, &elements) != nil {
		return nil
	}
	var all []string
	for _, element := range elements {
		if s, ok := text(element); ok {
			all = append(all, s)
		}
	}
	return all
}
