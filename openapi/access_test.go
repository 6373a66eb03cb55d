package openapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
)

// access is what an operation answers to whom. Each operation of the document needs a row.
var access = map[string]struct {
	public bool   // nobody's token is asked for
	admin  bool   // for admins alone
	body   string // one that will do
	status int    // for who may: alice and the admin; alice has a webspace that runs
}{
	"getHealth":      {public: true, status: 204},
	"getLivez":       {public: true, status: 204},
	"getReadyz":      {public: true, status: 204},
	"getDocument":    {public: true, status: 200},
	"getSwagger":     {public: true, status: 200},
	"getImages":      {public: true, status: 200},
	"listWebspaces":  {admin: true, status: 200},
	"ensureStarted":  {admin: true, status: 200},
	"getWebspace":    {status: 200},
	"createWebspace": {body: `{"image":"hello"}`, status: 409},
	"deleteWebspace": {status: 204},
	"getConfig":      {status: 200},
	"updateConfig":   {body: `{"httpPort":81}`, status: 200},
	"getState":       {status: 200},
	"start":          {status: 409},
	"reboot":         {status: 204},
	"shutdown":       {status: 204},
	"sync":           {status: 204},
	"getDomains":     {status: 200},
	"addDomain":      {status: 201},
	"removeDomain":   {status: 404},
	"getPorts":       {status: 200},
	"addPort":        {status: 201},
	"addRandomPort":  {status: 201},
	"removePort":     {status: 404},
	"getLog":         {status: 200},
	"clearLog":       {status: 204},
	"exec":           {body: `{"command":"true"}`, status: 200},
	"followEvents":   {status: 200},
	"openTerminal":   {status: 400}, // they are websockets, and these requests are not
	"openConsole":    {status: 400},
}

// operations calls do for each operation of the document.
func operations(t *testing.T, do func(method, path string, op *openapi3.Operation)) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapi.Document())
	require.NoError(t, err)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			do(method, path, op)
		}
	}
}

func TestAccess(t *testing.T) {
	seen := 0
	operations(t, func(method, path string, op *openapi3.Operation) {
		row, ok := access[op.OperationID]
		require.True(t, ok, "operation %s has no row", op.OperationID)
		seen++
		for _, who := range []struct {
			name, header, username string
			status                 int // 0: the row's
		}{
			{"nobody", "", "alice", 401},
			{"wrong token", "Bearer alice", "alice", 401},
			{"empty token", "Bearer ", "alice", 401},
			{"long token", "Bearer " + strings.Repeat("x", 9<<10), "alice", 401},
			{"basic", "Basic YWxpY2U6YWxpY2U=", "alice", 401},
			{"no scheme", "alice-token", "alice", 401},
			{"self", "Bearer alice-token", "self", 0},
			{"owner", "bearer alice-token", "alice", 0},
			{"expired", "Bearer alice-token;exp=1000000000", "alice", 401},
			{"wrong audience", "Bearer alice-token;aud=shop", "alice", 401},
			{"expired admin", "Bearer admin-token;exp=1000000000", "alice", 401},
			{"other user", "Bearer bob-token", "alice", 403},
			{"other user of nobody's", "Bearer bob-token", "nobody", 403},
			{"admin", "Bearer admin-token", "alice", 0},
			{"admin of nobody's", "Bearer admin-token", "nobody", 404},
		} {
			t.Run(op.OperationID+"/"+who.name, func(t *testing.T) {
				a := newAPI(t, nil)
				_, err := a.manager.Create(t.Context(), accounts[0].User, webspace.CreateRequest{Image: "hello"})
				require.NoError(t, err)
				require.NoError(t, a.manager.Start(t.Context(), 1000))

				path := strings.NewReplacer("{username}", who.username, "{domain}", "example.com", "{port}", "60000", "{ePort}", "60000", "{iPort}", "22").Replace(path)
				req := httptest.NewRequest(method, path, strings.NewReader(row.body))
				req.Header.Set("Content-Type", "application/json")
				if who.header != "" {
					req.Header.Set("Authorization", who.header)
				}
				want := who.status
				switch {
				case row.public, row.admin && !strings.Contains(path, who.username) && strings.HasPrefix(who.name, "admin"):
					want = row.status // it is about no user
				case row.admin && (who.name == "self" || who.name == "owner"):
					want = 403
				case want == 0:
					want = row.status
				}
				resp := a.do(t, req)
				require.Equal(t, want, resp.StatusCode, "%s", bodyOf(t, resp))
				if want == 401 {
					require.Equal(t, "Bearer", resp.Header.Get("WWW-Authenticate"))
				}
				if want == 401 || want == 403 {
					state, err := a.manager.State(t.Context(), 1000)
					require.NoError(t, err)
					require.Equal(t, webspace.StatusRunning, state.Status, "nothing has happened")
				}
			})
		}
	})
	require.Len(t, access, seen, "a row has no operation")
}

func TestTwoTokens(t *testing.T) {
	a := newAPI(t, nil)
	req := httptest.NewRequest("GET", "/v1/webspace/self", nil)
	req.Header["Authorization"] = []string{"Bearer alice-token", "Bearer bob-token"}
	require.Equal(t, http.StatusUnauthorized, a.do(t, req).StatusCode)
}

// lyingDirectory knows users that can not be.
type lyingDirectory struct{}

func (lyingDirectory) ByID(context.Context, identity.UserID) (identity.User, error) {
	return identity.User{}, nil
}

func (lyingDirectory) ByUsername(_ context.Context, username string) (identity.User, error) {
	if username == "unreachable" {
		return identity.User{}, fmt.Errorf("ldap://10.0.0.1: %w", errUnreachable)
	}
	return identity.User{}, nil
}

func (lyingDirectory) Authenticate(context.Context, string) (identity.User, error) {
	return identity.User{Admin: true}, nil
}

func TestUsersThatCanNotBe(t *testing.T) {
	a := newAPI(t, nil)
	h := openapi.NewServer(a.manager, lyingDirectory{}, lyingDirectory{}, &openapi.Options{Logger: quiet})
	for path, status := range map[string]int{
		"/v1/webspace/self": 401, "/v1/webspace/alice": 401, "/v1/webspace/unreachable": 503,
	} {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Authorization", "Bearer x")
		h.ServeHTTP(rec, req)
		require.Equal(t, status, rec.Code, path)
	}
}
