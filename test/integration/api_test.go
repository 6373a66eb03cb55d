package integration_test

import (
	"context"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/openapi"
)

// site is a daemon whose operations are called.
type site struct {
	api      string // address
	user     string // has no webspace; their token is their name, as is the admin's
	host     string // of their webspace
	image    string
	port     int          // that it serves
	network  netip.Prefix // of its address
	instance string       // what the instance calls itself; empty: it is no system of its own
}

// A generated client runs the operations of the API against the daemon on a real LXD, each with the status of the contract.
func TestAPI(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	t.Cleanup(func() { e.Delete(t, "ws-u1000") })
	everyOperation(t, site{
		api: d.api, user: "alice", host: "alice.ws.example.test", image: e.Image, port: 80, network: e.Subnet, instance: "ws-u1000",
	})
}

// So it does against the demo, on processes, with the limits that members have.
func TestDemo(t *testing.T) {
	path, err := binary()
	require.NoError(t, err)
	addresses := testbed.Addresses(t, 2)
	cmd := exec.Command(path, "demo", "--runtime", "local", "--listen", addresses[0], "--gateway", addresses[1])
	var logs buffer
	cmd.Stdout, cmd.Stderr = &logs, &logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(40 * time.Second):
			_ = cmd.Process.Kill()
			t.Error("the demo does not end")
		}
		if t.Failed() {
			t.Logf("the demo said:\n%s", logs.String())
		}
	})
	require.Eventually(t, func() bool { return strings.Contains(logs.String(), "Alice has a webspace") }, 30*time.Second, 20*time.Millisecond)
	everyOperation(t, site{
		api: addresses[0], user: "bob", host: "bob.localhost", image: "hello", port: 8080, network: netip.MustParsePrefix("127.0.0.0/8"),
	})
}

// patient waits and asks again when it is told that it asks too much.
type patient struct{}

func (patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests {
			return resp, err
		}
		_ = resp.Body.Close()
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(time.Duration(seconds) * time.Second):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

func everyOperation(t *testing.T, s site) {
	connect := func(token string) *openapi.ClientWithResponses {
		c, err := openapi.Connect("http://"+s.api, token, &openapi.ConnectOptions{HTTPClient: &http.Client{Transport: patient{}}})
		require.NoError(t, err)
		return c
	}
	ctx, self := t.Context(), "self"
	alice, admin, anyone := connect(s.user), connect("admin"), connect("")
	call := func(want int) func(resp interface{ StatusCode() int }, err error) {
		return func(resp interface{ StatusCode() int }, err error) {
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
	}

	call(204)(anyone.GetHealthWithResponse(ctx))
	call(204)(anyone.GetLivezWithResponse(ctx))
	require.Eventually(t, func() bool { _, err := anyone.GetReadyzWithResponse(ctx); return err == nil }, 30*time.Second, 20*time.Millisecond)
	images, err := anyone.GetImagesWithResponse(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, *images.JSON200)
	require.Len(t, (*images.JSON200)[0].Fingerprint, 64)
	for _, path := range []string{"/swagger", "/static/api.yaml"} {
		resp, err := http.Get("http://" + s.api + path)
		require.NoError(t, err)
		_ = resp.Body.Close()
		require.Equal(t, 200, resp.StatusCode)
	}
	call(401)(anyone.GetWebspaceWithResponse(ctx, s.user))

	call(404)(alice.CreateWebspaceWithResponse(ctx, self, openapi.InitRequest{Image: "no-such-image"}))
	call(404)(alice.GetStateWithResponse(ctx, self))
	call(201)(alice.CreateWebspaceWithResponse(ctx, self, openapi.InitRequest{Image: s.image}))
	call(409)(alice.CreateWebspaceWithResponse(ctx, self, openapi.InitRequest{Image: s.image}))
	call(200)(alice.GetWebspaceWithResponse(ctx, self))
	call(404)(alice.ShutdownWithResponse(ctx, self))

	// Somebody watches all the while.
	kinds := make(chan string, 1000)
	followed := make(chan error, 1)
	following, stop := context.WithCancel(ctx)
	defer stop()
	go func() { followed <- alice.FollowEvents(following, self, func(n openapi.Notice) { kinds <- n.Kind }) }()
	await := func(kind string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case k := <-kinds:
				if k == kind {
					return
				}
			case <-deadline:
				t.Fatalf("no notice %q", kind)
			}
		}
	}
	await("stopped")

	call(204)(alice.StartWithResponse(ctx, self))
	call(409)(alice.StartWithResponse(ctx, self))
	await("address")
	call(204)(alice.RebootWithResponse(ctx, self))
	started, err := admin.EnsureStartedWithResponse(ctx, s.user)
	require.NoError(t, err)
	address, err := netip.ParseAddr(string(started.Body))
	require.NoError(t, err)
	require.True(t, s.network.Contains(address), "%s", address)
	await("ready")
	state, err := alice.GetStateWithResponse(ctx, self)
	require.NoError(t, err)
	require.True(t, state.JSON200.Running)
	require.Positive(t, state.JSON200.Usage.Memory)
	require.Positive(t, state.JSON200.Usage.Processes)
	if s.instance != "" {
		require.Contains(t, state.JSON200.NetworkInterfaces, "eth0")
	}
	require.NotContains(t, state.JSON200.NetworkInterfaces, "lo")
	require.Nil(t, state.JSON200.Problem)

	port := s.port + 1
	old, err := alice.UpdateConfigWithResponse(ctx, self, openapi.Config{HTTPPort: &port})
	require.NoError(t, err)
	require.Equal(t, s.port, *old.JSON200.HTTPPort)
	await("config")
	port = s.port
	old, err = alice.UpdateConfigWithResponse(ctx, self, openapi.Config{HTTPPort: &port})
	require.NoError(t, err)
	require.Equal(t, s.port+1, *old.JSON200.HTTPPort)
	call(200)(alice.GetConfigWithResponse(ctx, self))
	call(204)(alice.SyncWithResponse(ctx, self))

	domains, err := alice.GetDomainsWithResponse(ctx, self)
	require.NoError(t, err)
	require.Equal(t, []string{s.host}, *domains.JSON200)
	call(400)(alice.AddDomainWithResponse(ctx, self, "example.com")) // nothing proves it
	call(400)(alice.RemoveDomainWithResponse(ctx, self, s.host))
	call(404)(alice.RemoveDomainWithResponse(ctx, self, "example.com"))

	call(201)(alice.AddPortWithResponse(ctx, self, 60022, 22))
	call(409)(alice.AddPortWithResponse(ctx, self, 60022, 22))
	call(400)(alice.AddPortWithResponse(ctx, self, 22, 22))
	random, err := alice.AddRandomPortWithResponse(ctx, self, 80)
	require.NoError(t, err)
	require.GreaterOrEqual(t, random.JSON201.EPort, 49152)
	ports, err := alice.GetPortsWithResponse(ctx, self)
	require.NoError(t, err)
	require.Len(t, *ports.JSON200, 2)
	require.Equal(t, 22, (*ports.JSON200)["60022"])
	call(204)(alice.RemovePortWithResponse(ctx, self, 60022))
	call(404)(alice.RemovePortWithResponse(ctx, self, 60022))

	run, err := alice.ExecWithResponse(ctx, self, openapi.ExecRequest{Command: "echo right; echo wrong >&2; exit 7"})
	require.NoError(t, err)
	require.Equal(t, "right\n", run.JSON200.Stdout)
	require.Equal(t, "wrong\n", run.JSON200.Stderr)
	require.Equal(t, 7, run.JSON200.ExitCode)
	run, err = alice.ExecWithResponse(ctx, self, openapi.ExecRequest{Command: "head -c 3000000 /dev/zero | tr '\\0' x"})
	require.NoError(t, err)
	require.Len(t, run.JSON200.Stdout, 1<<20)
	require.True(t, *run.JSON200.StdoutTruncated)
	require.False(t, *run.JSON200.StderrTruncated)
	if s.instance != "" {
		run, err = alice.ExecWithResponse(ctx, self, openapi.ExecRequest{Command: "hostname; echo from the console > /dev/console"})
		require.NoError(t, err)
		require.Equal(t, s.instance+"\n", run.JSON200.Stdout)
		require.Eventually(t, func() bool {
			log, err := alice.GetLogWithResponse(ctx, self)
			return err == nil && strings.Contains(string(log.Body), "from the console")
		}, 20*time.Second, 50*time.Millisecond)
	}
	call(200)(alice.GetLogWithResponse(ctx, self))
	call(204)(alice.ClearLogWithResponse(ctx, self))

	call(403)(alice.ListWebspacesWithResponse(ctx, nil))
	all, err := admin.ListWebspacesWithResponse(ctx, nil)
	require.NoError(t, err)
	mine := slices.IndexFunc(all.JSON200.Webspaces, func(w openapi.WebspaceSummary) bool { return slices.Contains(w.Hosts, s.host) })
	require.GreaterOrEqual(t, mine, 0)
	require.Equal(t, address.String(), *all.JSON200.Webspaces[mine].Address)

	call(204)(alice.ShutdownWithResponse(ctx, self))
	run, err = alice.ExecWithResponse(ctx, self, openapi.ExecRequest{Command: "true"})
	require.NoError(t, err, "it is started for a command")
	require.Equal(t, 0, run.JSON200.ExitCode)
	call(204)(alice.DeleteWebspaceWithResponse(ctx, self))
	await("deleted")
	require.True(t, errdefs.IsNotFound(<-followed))
	call(404)(alice.GetWebspaceWithResponse(ctx, self))
}

// A daemon that ends says goodbye to who follows a webspace, and does not wait for them to leave.
func TestGoodbye(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	d.create(t, "alice", e.Image)
	t.Cleanup(func() { e.Delete(t, "ws-u1000") })
	c, err := openapi.Connect("http://"+d.api, "alice", nil)
	require.NoError(t, err)
	begun, followed := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		followed <- c.FollowEvents(t.Context(), "self", func(openapi.Notice) { begun <- struct{}{} })
	}()
	<-begun
	d.terminate(t)
	err = <-followed
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "shutting down")
}
