package iamd_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netsoc/webspaced/identity"
)

// standIn answers as iamd does: it alone has the key of its tokens, and a token from before the account's last change of
// version is refused.
type standIn struct {
	*httptest.Server
	t   *testing.T
	key []byte

	mu       sync.Mutex
	accounts map[identity.UserID]*account
	asked    []string // escaped paths, in order
	tokens   map[string]bool
	override http.HandlerFunc // answers instead, if it is there
}

type account struct {
	ID        int64   `json:"id"`
	Username  string  `json:"username"`
	Email     string  `json:"email"`
	FirstName string  `json:"first_name"`
	LastName  string  `json:"last_name"`
	SSHKey    *string `json:"ssh_key"`
	IsAdmin   *bool   `json:"is_admin"`
	Verified  bool    `json:"verified"`
	Renewed   string  `json:"renewed"`
	version   int
}

func newStandIn(t *testing.T) *standIn {
	s := &standIn{t: t, key: []byte("a key that only iamd has"), accounts: make(map[identity.UserID]*account), tokens: make(map[string]bool)}
	yes, no, key := true, false, "ssh-ed25519 AAAA alice@laptop"
	s.accounts[1] = &account{ID: 1, Username: "root", IsAdmin: &yes}
	s.accounts[1000] = &account{ID: 1000, Username: "alice", SSHKey: &key, IsAdmin: &no, Verified: true}
	s.accounts[1001] = &account{ID: 1001, Username: "Bob.O'Hara"} // everything that may be null is
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) token(id identity.UserID, lifetime time.Duration) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[id]
	return s.sign(map[string]any{
		"sub": strconv.FormatInt(a.ID, 10), "is_admin": a.IsAdmin != nil && *a.IsAdmin, "version": a.version,
		"aud": []string{"auth"}, "iss": "iamd", "exp": time.Now().Add(lifetime).Unix(),
	}, s.key)
}

func (s *standIn) sign(claims map[string]any, key []byte) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(payload)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return signed + "." + encode(mac.Sum(nil))
}

// change alters an account. Logging out and another admin status raise the version.
func (s *standIn) change(id identity.UserID, f func(*account)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.accounts[id])
}

// answer makes f answer everything from now on.
func (s *standIn) answer(f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.override = f
}

func (s *standIn) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.asked...)
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.EscapedPath())
	s.tokens[r.Header.Get("Authorization")] = true
	override := s.override
	s.mu.Unlock()
	if override != nil {
		override(w, r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(status int, message string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
	w.Header().Set("Content-Type", "application/json")
	actor := s.authenticate(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if actor == nil {
		fail(http.StatusUnauthorized, "invalid token")
		return
	}
	who, ok := strings.CutPrefix(r.URL.EscapedPath(), "/v1/users/")
	switch {
	case !ok || r.Method != http.MethodGet:
		fail(http.StatusNotFound, "no such path")
	case who == "self/token":
		w.WriteHeader(http.StatusNoContent)
	case who == "self":
		_ = json.NewEncoder(w).Encode(actor)
	case actor.IsAdmin == nil || !*actor.IsAdmin:
		fail(http.StatusForbidden, "not an admin")
	default:
		name, _ := url.PathUnescape(who)
		for _, a := range s.accounts {
			if name == "id:"+strconv.FormatInt(a.ID, 10) || strings.EqualFold(name, a.Username) {
				_ = json.NewEncoder(w).Encode(a)
				return
			}
		}
		fail(http.StatusNotFound, "user not found")
	}
}

func (s *standIn) authenticate(token string) *account {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil || s.sign(claims, s.key) != token {
		return nil
	}
	id, err := strconv.ParseInt(claims["sub"].(string), 10, 64)
	a := s.accounts[identity.UserID(id)]
	if err != nil || a == nil || int(claims["version"].(float64)) != a.version || int64(claims["exp"].(float64)) <= time.Now().Unix() {
		return nil
	}
	return a
}
