package oidc_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/identitytest"
	"github.com/netsoc/webspaced/identity/oidc"
)

func fixture(t *testing.T) (identitytest.Fixture, *oidc.Provider) {
	p := connect(t, newIssuer())
	return identitytest.Fixture{
		Auth: p, Directory: p,
		Users: map[string]identity.User{
			issue(with(nil)): {ID: 1000, Username: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"}},
			issue(with(values{"uid_number": "1", "preferred_username": "root", "groups": []string{"x", "admins"}, "keys": nil})):                                             {ID: 1, Username: "root", Admin: true},
			mint(values{"alg": "ES256", "kid": "e1"}, with(values{"aud": []string{"other", audience}, "uid_number": 1001, "preferred_username": "bob", "keys": nil}), es256): {ID: 1001, Username: "bob"},
			mint(values{"alg": "EdDSA", "typ": "at+jwt"}, with(values{"uid_number": 1002, "preferred_username": "carol", "keys": "# none\n"}), eddsa):                        {ID: 1002, Username: "carol"},
		},
		Refused: []string{issue(with(values{"exp": time.Now().Add(-time.Second).Unix()}))},
	}, p
}

func TestProvider(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		f, _ := fixture(t)
		return f
	}})
}

func TestCachedProvider(t *testing.T) {
	identitytest.Run(t, identitytest.Harness{New: func(t *testing.T) identitytest.Fixture {
		f, p := fixture(t)
		f.Auth = identity.NewCache(p, p, nil) // what was Unavailable once may be known now, so the directory is not cached
		return f
	}})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t, newIssuer())
		end := time.Now().Add(5 * time.Second)
		token := issue(with(values{"exp": end.Unix()}))
		u, err := p.Authenticate(t.Context(), token)
		require.NoError(t, err)
		require.Equal(t, end.Unix(), u.Expires.Unix())
		time.Sleep(6 * time.Second)
		_, err = p.Authenticate(t.Context(), token)
		require.True(t, errdefs.IsUnauthorized(err))
		require.ErrorContains(t, err, "expired")
		require.NoError(t, p.Close())
	})
}

func TestForgedTokens(t *testing.T) {
	i := newIssuer()
	p := connect(t, i)
	now := time.Now()
	good := with(nil)
	hs256 := func(key []byte) func([]byte) []byte {
		return func(input []byte) []byte {
			mac := hmac.New(sha256.New, key)
			mac.Write(input)
			return mac.Sum(nil)
		}
	}
	der := must(x509.MarshalPKIXPublicKey(rsaKey().Public()))
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk := must(json.Marshal(jose.JSONWebKey{Key: rsaKey().Public()}))
	mine := jose.JSONWebKey{Key: rogue().Public(), KeyID: "mine"}
	theirs := rs256(rsaKey())
	signed := func(changes values) string { return issue(with(changes)) }
	head := func(changes values, sign func([]byte) []byte) string {
		h := values{"alg": "RS256", "kid": "r1", "typ": "JWT"}
		for name, value := range changes {
			if h[name] = value; value == nil {
				delete(h, name)
			}
		}
		return mint(h, good, sign)
	}
	none := func([]byte) []byte { return nil }
	token := issue(good)
	parts := strings.Split(token, ".")
	other := strings.Split(signed(values{"uid_number": 1}), ".")

	forged := map[string]string{
		"alg none":                        head(values{"alg": "none"}, none),
		"alg None":                        head(values{"alg": "None"}, none),
		"alg NONE with a signature":       head(values{"alg": "NONE"}, theirs),
		"alg none without kid":            head(values{"alg": "none", "kid": nil}, none),
		"no alg":                          head(values{"alg": nil}, theirs),
		"alg empty":                       head(values{"alg": ""}, theirs),
		"alg as number":                   head(values{"alg": 256}, theirs),
		"alg as list":                     head(values{"alg": []string{"RS256"}}, theirs),
		"alg of another case":             head(values{"alg": "rs256"}, theirs),
		"alg RS512 over RS256":            head(values{"alg": "RS512"}, theirs),
		"alg PS256 over RS256":            head(values{"alg": "PS256"}, theirs),
		"alg ES256 with an RSA key":       head(values{"alg": "ES256"}, theirs),
		"alg RS256 with an EC key":        head(values{"kid": "e1"}, es256),
		"HS256, public key in PEM":        head(values{"alg": "HS256"}, hs256(public)),
		"HS256, public key trimmed":       head(values{"alg": "HS256"}, hs256([]byte(strings.TrimSpace(string(public))))),
		"HS256, public key in DER":        head(values{"alg": "HS256"}, hs256(der)),
		"HS256, modulus":                  head(values{"alg": "HS256"}, hs256(rsaKey().N.Bytes())),
		"HS256, JWK":                      head(values{"alg": "HS256"}, hs256(jwk)),
		"HS256, empty key":                head(values{"alg": "HS256"}, hs256(nil)),
		"HS256, no kid":                   head(values{"alg": "HS256", "kid": nil}, hs256(public)),
		"another key":                     head(nil, rs256(rogue())),
		"another key without kid":         head(values{"kid": nil}, rs256(rogue())),
		"another key, unknown kid":        head(values{"kid": "mine"}, rs256(rogue())),
		"good key, unknown kid":           head(values{"kid": "r2"}, theirs),
		"kid of another case":             head(values{"kid": "R1"}, theirs),
		"kid is a path":                   head(values{"kid": "../../../../dev/null"}, hs256(nil)),
		"kid is SQL":                      head(values{"kid": "x' UNION SELECT 'key';--"}, rs256(rogue())),
		"kid is a URL":                    head(values{"kid": "https://evil.example/keys"}, rs256(rogue())),
		"kid with NUL":                    head(values{"kid": "r1\x00"}, theirs),
		"kid as number":                   head(values{"kid": 1}, theirs),
		"kid of 4 kB":                     head(values{"kid": strings.Repeat("k", 4096)}, rs256(rogue())),
		"jwk":                             head(values{"jwk": mine, "kid": nil}, rs256(rogue())),
		"jwk with its kid":                head(values{"jwk": mine, "kid": "mine"}, rs256(rogue())),
		"jwk with the good kid":           head(values{"jwk": mine}, rs256(rogue())),
		"jku":                             head(values{"jku": "https://evil.example/keys", "kid": "mine"}, rs256(rogue())),
		"x5u":                             head(values{"x5u": "https://evil.example/cert", "kid": "mine"}, rs256(rogue())),
		"x5c":                             head(values{"x5c": []string{base64.StdEncoding.EncodeToString(der)}}, rs256(rogue())),
		"crit":                            head(values{"crit": []string{"exp"}, "exp": 1}, theirs),
		"typ of a log-out":                head(values{"typ": "logout+jwt"}, theirs),
		"typ as number":                   head(values{"typ": 1}, theirs),
		"typ of a DPoP proof":             head(values{"typ": "dpop+jwt"}, theirs),
		"header no object":                mint(`["RS256"]`, good, theirs),
		"header cut off":                  mint(`{"alg":"RS256"`, good, theirs),
		"header empty":                    mint(``, good, theirs),
		"no signature":                    parts[0] + "." + parts[1] + ".",
		"no payload":                      parts[0] + ".." + parts[2],
		"two parts":                       parts[0] + "." + parts[1],
		"four parts":                      token + "." + parts[2],
		"five parts, as encrypted":        token + "." + parts[1] + "." + parts[2],
		"payload of another":              parts[0] + "." + other[1] + "." + parts[2],
		"signature of another":            parts[0] + "." + parts[1] + "." + other[2],
		"padded":                          token + "=",
		"standard base64":                 strings.ReplaceAll(strings.ReplaceAll(token, "-", "+"), "_", "/") + "+/",
		"JSON serialisation":              fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, parts[1], parts[0], parts[2]),
		"two signatures":                  fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, parts[1], parts[0], parts[2]),
		"iss of another":                  signed(values{"iss": "https://evil.example.test"}),
		"iss with a slash":                signed(values{"iss": issuerURL + "/"}),
		"iss of another case":             signed(values{"iss": strings.ToUpper(issuerURL)}),
		"iss without scheme":              signed(values{"iss": strings.TrimPrefix(issuerURL, "https://")}),
		"no iss":                          signed(values{"iss": nil}),
		"iss as list":                     signed(values{"iss": []string{issuerURL}}),
		"ISS beside iss":                  signed(values{"iss": "https://evil.example.test", "ISS": issuerURL}),
		"aud of another":                  signed(values{"aud": "dashboard"}),
		"aud begins alike":                signed(values{"aud": audience + "-test"}),
		"aud of another case":             signed(values{"aud": "Webspaced"}),
		"aud list of others":              signed(values{"aud": []string{"a", "webspace"}}),
		"aud in one text":                 signed(values{"aud": "other " + audience}),
		"aud empty":                       signed(values{"aud": []string{}}),
		"aud nested":                      signed(values{"aud": [][]string{{audience}}}),
		"no aud":                          signed(values{"aud": nil}),
		"aud only as azp":                 signed(values{"aud": "other", "azp": audience}),
		"AUD beside aud":                  signed(values{"aud": "other", "AUD": audience}),
		"expired":                         signed(values{"exp": now.Add(-time.Second).Unix()}),
		"expired long ago":                signed(values{"exp": 1}),
		"no exp":                          signed(values{"exp": nil}),
		"exp null":                        mint(values{"alg": "RS256", "kid": "r1"}, `{"iss":"`+issuerURL+`","aud":"webspaced","exp":null,"uid_number":1000,"preferred_username":"alice"}`, theirs),
		"exp as text":                     signed(values{"exp": "9999999999"}),
		"exp negative":                    signed(values{"exp": -1}),
		"exp overflows":                   signed(values{"exp": json.Number("9223372036854775807")}),
		"exp beyond numbers":              signed(values{"exp": json.Number("1e400")}),
		"eXp beside a past exp":           signed(values{"exp": 1, "eXp": now.Add(time.Hour).Unix()}),
		"nbf in the future":               signed(values{"nbf": now.Add(2 * time.Minute).Unix()}),
		"nbf as text":                     signed(values{"nbf": "0"}),
		"nbf overflows":                   signed(values{"nbf": json.Number("1e300")}),
		"iat in the future":               signed(values{"iat": now.Add(time.Hour).Unix()}),
		"no ID":                           signed(values{"uid_number": nil}),
		"ID zero":                         signed(values{"uid_number": 0}),
		"ID negative":                     signed(values{"uid_number": -1000}),
		"ID a fraction":                   signed(values{"uid_number": 1000.5}),
		"ID with an exponent":             signed(values{"uid_number": json.Number("1e3")}),
		"ID overflows":                    signed(values{"uid_number": json.Number("18446744073709552616")}),
		"ID text with zeros":              signed(values{"uid_number": "01000"}),
		"ID text with a sign":             signed(values{"uid_number": "+1000"}),
		"ID text with a space":            signed(values{"uid_number": " 1000"}),
		"ID as list":                      signed(values{"uid_number": []int{1000}}),
		"ID of another case":              signed(values{"uid_number": nil, "UID_NUMBER": 1000}),
		"no username":                     signed(values{"preferred_username": nil}),
		"username empty":                  signed(values{"preferred_username": ""}),
		"username too long":               signed(values{"preferred_username": strings.Repeat("a", 256)}),
		"username as number":              signed(values{"preferred_username": 1000}),
		"claims are a list":               mint(values{"alg": "RS256", "kid": "r1"}, `[]`, theirs),
		"claims are text":                 mint(values{"alg": "RS256", "kid": "r1"}, `"alice"`, theirs),
		"claims are no JSON":              mint(values{"alg": "RS256", "kid": "r1"}, "\x00\xff", theirs),
		"claims cut off":                  mint(values{"alg": "RS256", "kid": "r1"}, `{"iss":"`+issuerURL, theirs),
		"huge":                            signed(values{"keys": strings.Repeat("x", identity.MaxToken)}),
		"huge and hollow":                 strings.Repeat("a", 1<<20) + "." + parts[1] + "." + parts[2],
		"dots":                            strings.Repeat(".", 1<<20),
		"deep":                            mint(values{"alg": "RS256", "kid": "r1"}, strings.Repeat("[", 4000), theirs),
		"with a line break":               parts[0] + "." + parts[1] + ".\n" + parts[2],
		"from an ID of a private key ref": head(values{"kid": "d1"}, theirs),
	}
	require.GreaterOrEqual(t, len(forged), 60)
	for name, token := range forged {
		u, err := p.Authenticate(t.Context(), token)
		require.Truef(t, errdefs.IsUnauthorized(err), "%s: %v", name, err)
		require.Zero(t, u, name)
	}
	require.LessOrEqual(t, i.keyFetches(), 2)

	for name, token := range map[string]string{
		"as it is":                token,
		"begins a little later":   signed(values{"nbf": now.Add(50 * time.Second).Unix()}),
		"claims nobody knows":     signed(values{"x": values{"y": []any{nil, 1.5}}}),
		"no iat":                  signed(values{"iat": nil}),
		"no kid":                  head(values{"kid": nil}, theirs),
		"type with its full name": head(values{"typ": "application/at+jwt"}, theirs),
		"jwk that is not used":    head(values{"jku": "https://evil.example/keys"}, theirs),
	} {
		u, err := p.Authenticate(t.Context(), token)
		require.NoError(t, err, name)
		require.Equal(t, identity.UserID(1000), u.ID, name)
	}
}

func TestAdmins(t *testing.T) {
	i := newIssuer()
	admin := func(claim, value string, changes values) bool {
		p, err := oidc.New(issuerURL, audience, &oidc.Options{IDClaim: "uid_number", AdminClaim: claim, AdminValue: value, Transport: i})
		require.NoError(t, err)
		defer p.Close()
		u, err := p.Authenticate(t.Context(), issue(with(changes)))
		require.NoError(t, err)
		return u.Admin
	}
	for _, test := range []struct {
		claim, value string
		changes      values
		want         bool
	}{
		{"is_admin", "", values{"is_admin": true}, true},
		{"is_admin", "", values{"is_admin": "true"}, false},
		{"is_admin", "", values{"is_admin": 1}, false},
		{"is_admin", "", nil, false},
		{"is_admin", "true", values{"is_admin": true}, false},
		{"", "", values{"": true}, false},
		{"", "admins", values{"groups": "admins", "": "admins"}, false},
		{"groups", "admins", values{"groups": "admins"}, true},
		{"groups", "admins", values{"groups": []any{1, nil, "admins"}}, true},
		{"groups", "admins", values{"groups": "admins users"}, false},
		{"groups", "admins", values{"groups": []string{"Admins", "admins2"}}, false},
		{"groups", "admins", values{"groups": [][]string{{"admins"}}}, false},
		{"groups", "admins", values{"groups": values{"admins": true}}, false},
		{"groups", "admins", values{"Groups": "admins"}, false},
		{"realm_access.roles", "admins", values{"realm_access": values{"roles": []string{"admins"}}}, true},
		{"realm_access.roles", "admins", values{"realm_access": []string{"admins"}}, false},
		{"realm_access.roles", "admins", values{"realm_access.roles": "users", "realm_access": values{"roles": "admins"}}, false},
		{"https://example.org/groups", "admins", values{"https://example.org/groups": []string{"admins"}}, true},
	} {
		require.Equal(t, test.want, admin(test.claim, test.value, test.changes), "%+v", test)
	}
}

func TestDefaultClaims(t *testing.T) {
	p, err := oidc.New(issuerURL, audience, &oidc.Options{Transport: newIssuer()})
	require.NoError(t, err)
	defer p.Close()
	u, err := p.Authenticate(t.Context(), issue(with(values{"sub": "42", "groups": []string{"admins"}})))
	require.NoError(t, err)
	u.Expires = time.Time{}
	require.Equal(t, identity.User{ID: 42, Username: "alice"}, u)
}

func TestDirectoryRemembers(t *testing.T) {
	p := connect(t, newIssuer())
	login := func(id int, name string, issued time.Duration) {
		_, err := p.Authenticate(t.Context(), issue(with(values{"uid_number": id, "preferred_username": name, "iat": time.Now().Add(issued).Unix()})))
		require.NoError(t, err)
	}
	username := func(id identity.UserID) string {
		u, err := p.ByID(t.Context(), id)
		if err != nil {
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
		return u.Username
	}
	id := func(name string) identity.UserID {
		u, err := p.ByUsername(t.Context(), name)
		if err != nil {
			require.True(t, errdefs.IsUnavailable(err), "%v", err)
		}
		return u.ID
	}
	require.Zero(t, username(1000))
	p.Learn(1000, "alice")
	p.Learn(1001, "bob")
	p.Learn(0, "nobody")
	p.Learn(1002, "")
	require.Equal(t, "alice", username(1000))
	require.Equal(t, identity.UserID(1001), id("bob"))
	require.Zero(t, id("nobody"))
	require.Zero(t, id(""))

	login(1000, "alicia", -time.Hour) // renamed at the provider
	p.Learn(1000, "alice")            // the record still has the old name
	require.Equal(t, "alicia", username(1000))
	require.Zero(t, id("alice"))
	login(1000, "alice", -2*time.Hour) // a token from before that
	require.Equal(t, "alicia", username(1000))
	p.Learn(1000, "ally") // another daemon has seen a newer token
	require.Equal(t, "ally", username(1000))

	// A username that has passed to another user is that user's; without a token of either it is nobody's.
	p.Learn(1003, "bob")
	require.Zero(t, id("bob"))
	login(1003, "bob", -time.Minute)
	require.Equal(t, identity.UserID(1003), id("bob"))
	login(1001, "bob", 0)
	require.Equal(t, identity.UserID(1001), id("bob"))
}

func TestNewRefuses(t *testing.T) {
	for _, issuer := range []string{"", "accounts.example.org", "ftp://accounts.example.org", "https://", "https://a.example.org?x=y", "https://a.example.org#f"} {
		_, err := oidc.New(issuer, audience, nil)
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", issuer, err)
	}
	_, err := oidc.New(issuerURL, "", nil)
	require.True(t, errdefs.IsInvalidArgument(err))
}

func ExampleNew() {
	users, err := oidc.New("https://accounts.example.org", "webspaced", &oidc.Options{
		IDClaim: "uid_number", AdminClaim: "groups", AdminValue: "webspace-admins",
	})
	if err != nil {
		panic(err)
	}
	defer users.Close()
	user, err := users.Authenticate(context.Background(), "a token of that issuer")
	fmt.Println(user.Username, err)
}
