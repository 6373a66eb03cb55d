package openapi_test

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/openapi"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

func TestEveryOperationFake(t *testing.T) { everyOperation(t, newAPI(t, nil)) }

// terminals are tested with websockets.
var terminals = map[string]bool{"openTerminal": true, "openConsole": true}

// everyOperation calls every operation of the document with the generated client, and sees each succeed with the status
// that the document names. Answers are held against the document on the way.
func everyOperation(t *testing.T, a *api) {
	ctx := t.Context()
	alice, admin, anyone := a.connect(t, "alice-token"), a.connect(t, "admin-token"), a.connect(t, "")
	<-a.manager.Synced()
	status := func(want int, resp interface{ StatusCode() int }, err error) {
		t.Helper()
		if want < 300 {
			require.NoError(t, err)
			require.Equal(t, want, resp.StatusCode())
			return
		}
		var answer *openapi.Error
		require.ErrorAs(t, err, &answer)
		require.Equal(t, want, answer.Status, "%v", err)
	}
	call := func(want int) func(resp interface{ StatusCode() int }, err error) {
		return func(resp interface{ StatusCode() int }, err error) { t.Helper(); status(want, resp, err) }
	}

	call(204)(anyone.GetHealthWithResponse(ctx))
	call(204)(anyone.GetLivezWithResponse(ctx))
	call(204)(anyone.GetReadyzWithResponse(ctx))
	call(200)(anyone.GetImagesWithResponse(ctx))
	for _, path := range []string{"/swagger", "/static/api.yaml"} {
		require.Equal(t, 200, a.as(t, "", "GET", path, "").StatusCode)
	}

	// Without a webspace.
	call(404)(alice.GetWebspaceWithResponse(ctx, "self"))
	call(404)(alice.GetDomainsWithResponse(ctx, "self"))
	call(404)(alice.AddPortWithResponse(ctx, "self", 60000, 22))
	call(404)(alice.ExecWithResponse(ctx, "self", openapi.ExecRequest{Command: "true"}))
	call(404)(alice.SyncWithResponse(ctx, "self"))
	call(404)(alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "nothing"}))
	require.True(t, errdefs.IsNotFound(alice.FollowEvents(ctx, "self", nil)))

	call(201)(alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello"}))
	call(409)(alice.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello"}))
	call(200)(alice.GetWebspaceWithResponse(ctx, "alice"))
	call(200)(admin.GetWebspaceWithResponse(ctx, "alice"))

	// Config: the old values come back.
	port := 8080
	old, err := alice.UpdateConfigWithResponse(ctx, "self", openapi.Config{HTTPPort: &port})
	status(200, old, err)
	call(200)(alice.GetConfigWithResponse(ctx, "self"))
	port = 0
	call(400)(alice.UpdateConfigWithResponse(ctx, "self", openapi.Config{HTTPPort: &port}))

	// State.
	call(404)(alice.ShutdownWithResponse(ctx, "self"))
	call(204)(alice.StartWithResponse(ctx, "self"))
	call(409)(alice.StartWithResponse(ctx, "self"))
	call(204)(alice.RebootWithResponse(ctx, "self"))
	state, err := alice.GetStateWithResponse(ctx, "self")
	status(200, state, err)
	require.True(t, state.JSON200.Running)
	require.Equal(t, "running", *state.JSON200.Status)
	call(204)(alice.SyncWithResponse(ctx, "self"))
	call(204)(alice.ShutdownWithResponse(ctx, "self"))

	// Domains.
	call(201)(alice.AddDomainWithResponse(ctx, "self", "Example.COM"))
	call(409)(alice.AddDomainWithResponse(ctx, "self", "example.com"))
	for _, bad := range []string{"unproven.example.com", "localhost", "a.localhost", "co.uk", "*.example.com", "127.0.0.1", "exa mple.com", "x`) || Host(`y.com", "-"} {
		call(400)(alice.AddDomainWithResponse(ctx, "self", bad))
	}
	domains, err := alice.GetDomainsWithResponse(ctx, "self")
	status(200, domains, err)
	require.Equal(t, []string{"alice.localhost", "example.com"}, *domains.JSON200)
	call(400)(alice.RemoveDomainWithResponse(ctx, "self", "alice.localhost"))
	call(404)(alice.RemoveDomainWithResponse(ctx, "self", "bob.localhost"))
	call(404)(alice.RemoveDomainWithResponse(ctx, "self", "example.net"))
	call(201)(admin.CreateWebspaceWithResponse(ctx, "bob", openapi.InitRequest{Image: "hello"}))
	call(409)(admin.AddDomainWithResponse(ctx, "bob", "example.com"))
	call(201)(alice.AddDomainWithResponse(ctx, "self", "one.example.com"))
	call(201)(alice.AddDomainWithResponse(ctx, "self", "two.example.com"))
	call(400)(alice.AddDomainWithResponse(ctx, "self", "three.example.com"))
	call(204)(alice.RemoveDomainWithResponse(ctx, "self", "EXAMPLE.com"))
	call(404)(alice.RemoveDomainWithResponse(ctx, "self", "example.com"))

	// Ports.
	call(201)(alice.AddPortWithResponse(ctx, "self", 60000, 22))
	call(409)(admin.AddPortWithResponse(ctx, "bob", 60000, 22))
	call(400)(alice.AddPortWithResponse(ctx, "self", 22, 22))
	call(400)(alice.AddPortWithResponse(ctx, "self", 60001, 0))
	call(400)(alice.AddRandomPortWithResponse(ctx, "self", 65536))
	random, err := alice.AddRandomPortWithResponse(ctx, "self", 80)
	status(201, random, err)
	ports, err := alice.GetPortsWithResponse(ctx, "self")
	status(200, ports, err)
	require.Equal(t, openapi.Ports{"60000": 22, strconv.Itoa(random.JSON201.EPort): 80}, *ports.JSON200)
	call(201)(alice.AddRandomPortWithResponse(ctx, "self", 80))
	call(400)(alice.AddRandomPortWithResponse(ctx, "self", 80))
	call(204)(alice.RemovePortWithResponse(ctx, "self", 60000))
	call(404)(alice.RemovePortWithResponse(ctx, "self", 60000))

	// Commands start what is stopped, and have two outputs.
	result, err := alice.ExecWithResponse(ctx, "self", openapi.ExecRequest{Command: "echo out; echo err >&2; exit 3"})
	status(200, result, err)
	require.JSONEq(t, `{"stdout":"out\n","stderr":"err\n","exitCode":3,"stdoutTruncated":false,"stderrTruncated":false}`, string(result.Body))
	call(200)(alice.GetLogWithResponse(ctx, "self"))
	call(204)(alice.ClearLogWithResponse(ctx, "self"))

	// For admins.
	started, err := admin.EnsureStartedWithResponse(ctx, "alice")
	status(200, started, err)
	_, err = netip.ParseAddr(string(started.Body))
	require.NoError(t, err)
	call(403)(alice.EnsureStartedWithResponse(ctx, "self"))
	call(403)(alice.ListWebspacesWithResponse(ctx, nil))
	pages(t, admin)

	// The stream begins with how things stand.
	require.Equal(t, 200, a.as(t, "alice-token", "GET", "/v1/webspace/self/events", "").StatusCode)

	call(204)(alice.DeleteWebspaceWithResponse(ctx, "self"))
	call(404)(alice.DeleteWebspaceWithResponse(ctx, "self"))
	call(204)(admin.DeleteWebspaceWithResponse(ctx, "bob"))

	operations(t, func(_, _ string, op *openapi3.Operation) {
		for code := range op.Responses.Map() {
			if strings.HasPrefix(code, "2") {
				require.True(t, a.seen[op.OperationID+" "+code], "%s has not answered %s", op.OperationID, code)
				return
			}
		}
		require.True(t, terminals[op.OperationID], "%s has no success", op.OperationID)
	})
}

// pages reads the list of all webspaces, alice's and bob's, page by page.
func pages(t *testing.T, admin *openapi.ClientWithResponses) {
	one := 1
	first, err := admin.ListWebspacesWithResponse(t.Context(), &openapi.ListWebspacesParams{Limit: &one})
	require.NoError(t, err)
	require.Len(t, first.JSON200.Webspaces, 1)
	require.EqualValues(t, 1000, first.JSON200.Webspaces[0].User)
	require.Contains(t, first.JSON200.Webspaces[0].Hosts, "alice.localhost")
	require.Equal(t, "running", first.JSON200.Webspaces[0].Status)
	second, err := admin.ListWebspacesWithResponse(t.Context(), &openapi.ListWebspacesParams{Limit: &one, Cursor: first.JSON200.Next})
	require.NoError(t, err)
	require.EqualValues(t, 1001, second.JSON200.Webspaces[0].User)
	require.Nil(t, second.JSON200.Next)
	third, err := admin.ListWebspacesWithResponse(t.Context(), &openapi.ListWebspacesParams{Cursor: ptr("1001")})
	require.NoError(t, err)
	require.Empty(t, third.JSON200.Webspaces)
	zero := 0
	for _, bad := range []openapi.ListWebspacesParams{{Limit: &zero}, {Cursor: ptr("x")}, {Cursor: ptr("-1")}, {Cursor: ptr(strings.Repeat("9", 19))}} {
		_, err := admin.ListWebspacesWithResponse(t.Context(), &bad)
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	}
}

func ptr[T any](v T) *T { return &v }

// step is one use of the library, and the same through client and server.
type step struct {
	name   string
	direct func(ctx context.Context, m *webspace.Manager) error
	remote func(ctx context.Context, c *openapi.ClientWithResponses) error
}

func result[T any](_ T, err error) error { return err }

var steps = []step{
	{"Images", func(ctx context.Context, m *webspace.Manager) error { return result(m.Images(ctx)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.GetImagesWithResponse(ctx))
		}},
	{"Get", func(ctx context.Context, m *webspace.Manager) error { return result(m.Get(ctx, 1000)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.GetWebspaceWithResponse(ctx, "self"))
		}},
	{"Create", func(ctx context.Context, m *webspace.Manager) error {
		return result(m.Create(ctx, accounts[0].User, webspace.CreateRequest{Image: "hello"}))
	}, func(ctx context.Context, c *openapi.ClientWithResponses) error {
		return result(c.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "hello"}))
	}},
	{"Create of nothing", func(ctx context.Context, m *webspace.Manager) error {
		return result(m.Create(ctx, accounts[0].User, webspace.CreateRequest{Image: "nothing"}))
	}, func(ctx context.Context, c *openapi.ClientWithResponses) error {
		return result(c.CreateWebspaceWithResponse(ctx, "self", openapi.InitRequest{Image: "nothing"}))
	}},
	{"SetConfig", func(ctx context.Context, m *webspace.Manager) error {
		return result(m.SetConfig(ctx, 1000, webspace.ConfigChange{HTTPPort: ptr(8081)}))
	}, func(ctx context.Context, c *openapi.ClientWithResponses) error {
		return result(c.UpdateConfigWithResponse(ctx, "self", openapi.Config{HTTPPort: ptr(8081)}))
	}},
	{"SetConfig out of bounds", func(ctx context.Context, m *webspace.Manager) error {
		return result(m.SetConfig(ctx, 1000, webspace.ConfigChange{StartupDelay: ptr(time.Hour)}))
	}, func(ctx context.Context, c *openapi.ClientWithResponses) error {
		return result(c.UpdateConfigWithResponse(ctx, "self", openapi.Config{StartupDelay: ptr(3600.0)}))
	}},
	{"State", func(ctx context.Context, m *webspace.Manager) error { return result(m.State(ctx, 1000)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.GetStateWithResponse(ctx, "self"))
		}},
	{"Start", func(ctx context.Context, m *webspace.Manager) error { return m.Start(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.StartWithResponse(ctx, "self"))
		}},
	{"Restart", func(ctx context.Context, m *webspace.Manager) error { return m.Restart(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.RebootWithResponse(ctx, "self"))
		}},
	{"Stop", func(ctx context.Context, m *webspace.Manager) error { return m.Stop(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.ShutdownWithResponse(ctx, "self"))
		}},
	{"Sync", func(ctx context.Context, m *webspace.Manager) error { return m.Sync(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.SyncWithResponse(ctx, "self"))
		}},
	{"Domains", func(ctx context.Context, m *webspace.Manager) error { return result(m.Domains(ctx, accounts[0].User)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.GetDomainsWithResponse(ctx, "self"))
		}},
	{"AddDomain", func(ctx context.Context, m *webspace.Manager) error { return m.AddDomain(ctx, 1000, "example.com") },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.AddDomainWithResponse(ctx, "self", "example.com"))
		}},
	{"AddDomain unproven", func(ctx context.Context, m *webspace.Manager) error {
		return m.AddDomain(ctx, 1000, "unproven.example.com")
	}, func(ctx context.Context, c *openapi.ClientWithResponses) error {
		return result(c.AddDomainWithResponse(ctx, "self", "unproven.example.com"))
	}},
	{"RemoveDomain", func(ctx context.Context, m *webspace.Manager) error { return m.RemoveDomain(ctx, 1000, "example.com") },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.RemoveDomainWithResponse(ctx, "self", "example.com"))
		}},
	{"AddPort", func(ctx context.Context, m *webspace.Manager) error { return result(m.AddPort(ctx, 1000, 60000, 22)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.AddPortWithResponse(ctx, "self", 60000, 22))
		}},
	{"AddPort at random", func(ctx context.Context, m *webspace.Manager) error { return result(m.AddPort(ctx, 1000, 0, 22)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.AddRandomPortWithResponse(ctx, "self", 22))
		}},
	{"RemovePort", func(ctx context.Context, m *webspace.Manager) error { return m.RemovePort(ctx, 1000, 60000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.RemovePortWithResponse(ctx, "self", 60000))
		}},
	{"Log", func(ctx context.Context, m *webspace.Manager) error { return result(m.Log(ctx, 1000, 1<<20)) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.GetLogWithResponse(ctx, "self"))
		}},
	{"ClearLog", func(ctx context.Context, m *webspace.Manager) error { return m.ClearLog(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.ClearLogWithResponse(ctx, "self"))
		}},
	{"Shell", func(ctx context.Context, m *webspace.Manager) error { return result(m.Shell(ctx, 1000, "exit 1")) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.ExecWithResponse(ctx, "self", openapi.ExecRequest{Command: "exit 1"}))
		}},
	{"Delete", func(ctx context.Context, m *webspace.Manager) error { return m.Delete(ctx, 1000) },
		func(ctx context.Context, c *openapi.ClientWithResponses) error {
			return result(c.DeleteWebspaceWithResponse(ctx, "self"))
		}},
}

// classes are those by which callers decide.
var classes = map[string]error{
	"NotFound": errdefs.ErrNotFound, "AlreadyExists": errdefs.ErrAlreadyExists, "Conflict": errdefs.ErrConflict,
	"InvalidArgument": errdefs.ErrInvalidArgument, "ResourceExhausted": errdefs.ErrResourceExhausted,
	"FailedPrecondition": errdefs.ErrFailedPrecondition, "Unavailable": errdefs.ErrUnavailable,
	"NotImplemented": errdefs.ErrNotImplemented, "PermissionDenied": errdefs.ErrPermissionDenied,
	"DeadlineExceeded": context.DeadlineExceeded, "Internal": errdefs.ErrInternal,
}

func className(err error) string {
	if err == nil {
		return "success"
	}
	// Where an error is of several classes, both sides have the same one.
	err = errdefs.Resolve(err)
	for name, class := range classes {
		if errors.Is(err, class) {
			return name
		}
	}
	return err.Error()
}

// TestSameClasses uses the library and, in the same state, the server through the client: each use ends with the same
// class of error. A conformance suite for runtimes can not run through the API, which hides what runtimes are made of:
// records, revisions and instances of other names. So this walks through the API's own uses.
func TestSameClasses(t *testing.T) {
	library, remote := newAPI(t, nil), newAPI(t, nil)
	client := remote.connect(t, "alice-token")
	<-library.manager.Synced()
	<-remote.manager.Synced()
	seen := map[string]bool{}
	walk := func(names ...string) {
		for _, name := range names {
			for _, s := range steps {
				if s.name == name {
					want := className(s.direct(t.Context(), library.manager))
					require.Equal(t, want, className(s.remote(t.Context(), client)), name)
					seen[want] = true
				}
			}
		}
	}
	var all []string
	for _, s := range steps {
		all = append(all, s.name)
	}
	walk(all...) // it begins with none, creates one and deletes it
	walk(all...)
	walk("Create", "Create", "Create of nothing", "Stop", "Restart", "Start", "Start", "AddDomain", "AddDomain", "AddPort", "AddPort",
		"AddPort at random", "AddPort at random", "AddPort at random", "RemovePort", "RemovePort", "Stop", "Stop", "Shell")
	walk("Delete", "Delete")
	walk(all[3:]...) // without one
	for _, class := range []string{"success", "NotFound", "AlreadyExists", "Conflict", "FailedPrecondition", "InvalidArgument", "ResourceExhausted"} {
		require.True(t, seen[class], "nothing ended with %s", class)
	}
}

// TestSameClassesOfFaults has every call of the runtime fail, with each class that it may.
func TestSameClassesOfFaults(t *testing.T) {
	for name, class := range map[string]error{
		"Unavailable": errdefs.ErrUnavailable, "Internal": errdefs.ErrInternal, "DeadlineExceeded": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			var broken [2]failure
			library := newAPI(t, &runtimetest.FakeOptions{Before: broken[0].before})
			remote := newAPI(t, &runtimetest.FakeOptions{Before: broken[1].before})
			client := remote.connect(t, "alice-token")
			for _, a := range []*api{library, remote} {
				<-a.manager.Synced()
				require.NoError(t, result(a.manager.Create(t.Context(), accounts[0].User, webspace.CreateRequest{Image: "hello"})))
			}
			broken[0].set(class)
			broken[1].set(class)
			for _, s := range steps {
				require.Equal(t, className(s.direct(t.Context(), library.manager)), className(s.remote(t.Context(), client)), s.name)
			}
			broken[0].set(nil)
			broken[1].set(nil)
		})
	}
}

// TestServerOutOfReach is Unavailable; a caller who has left gets their own error.
func TestServerOutOfReach(t *testing.T) {
	c, err := openapi.Connect("http://127.0.0.1:1", "token", nil)
	require.NoError(t, err)
	_, err = c.GetWebspaceWithResponse(t.Context(), "self")
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.True(t, errdefs.IsUnavailable(c.FollowEvents(t.Context(), "self", nil)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.GetWebspaceWithResponse(ctx, "self")
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, errdefs.IsUnavailable(err))
}
