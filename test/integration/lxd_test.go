package integration_test

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

// Whatever ended a webspace, the next request for it is answered.
func TestLXD(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	const alice = "ws-u1000"
	d.create(t, "alice", e.Image)
	t.Cleanup(func() { e.Delete(t, alice) })

	require.Equal(t, http.StatusConflict, d.do(t, "alice", "POST", "/webspace/self", map[string]any{"image": e.Image}, nil))
	require.Equal(t, http.StatusNotFound, d.do(t, "bob", "POST", "/webspace/self", map[string]any{"image": "no-such-image"}, nil))
	require.Equal(t, http.StatusNotFound, d.do(t, "bob", "GET", "/webspace/self", nil, nil))
	require.Equal(t, http.StatusForbidden, d.do(t, "bob", "GET", "/webspace/alice", nil, nil))
	require.Equal(t, http.StatusOK, d.do(t, "admin", "GET", "/webspace/alice", nil, nil))
	require.False(t, d.running(t, "alice"))

	status, body, err := visit(t.Context(), d.gateway, "nobody.ws.example.test")
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, status)
	require.NotContains(t, body, "alice")

	answered(t, d.gateway, "alice", alice)
	require.True(t, d.running(t, "alice"))

	for _, end := range []struct {
		name string
		end  func(t *testing.T)
	}{
		{"clean stop through the API", func(t *testing.T) {
			require.Equal(t, http.StatusNoContent, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
			require.False(t, d.running(t, "alice"))
			require.Equal(t, http.StatusNotFound, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
		}},
		{"start through the API", func(t *testing.T) {
			require.Equal(t, http.StatusConflict, d.do(t, "alice", "POST", "/webspace/self/state", nil, nil))
			require.Equal(t, http.StatusNoContent, d.do(t, "alice", "DELETE", "/webspace/self/state", nil, nil))
			require.Equal(t, http.StatusNoContent, d.do(t, "alice", "POST", "/webspace/self/state", nil, nil))
		}},
		{"reboot through the API", func(t *testing.T) {
			require.Equal(t, http.StatusNoContent, d.do(t, "alice", "PUT", "/webspace/self/state", nil, nil))
		}},
		{"clean stop behind our back", func(t *testing.T) { e.Run(t, "stop", alice) }},
		{"forced stop behind our back", func(t *testing.T) { e.Run(t, "stop", "--force", alice) }},
		{"stop from inside", func(t *testing.T) { _ = e.Command("exec", alice, "--", "poweroff").Run() }}, // it is killed, too
		{"stop from inside, finished", func(t *testing.T) {
			_ = e.Command("exec", alice, "--", "poweroff").Run()
			require.Eventually(t, func() bool {
				return strings.TrimSpace(e.Run(t, "list", "-c", "s", "--format", "csv", alice)) == "STOPPED"
			}, 20*time.Second, 50*time.Millisecond)
		}},
		{"address changed", func(t *testing.T) {
			e.Run(t, "stop", "--force", alice)
			e.Run(t, "config", "device", "set", alice, "eth0", "ipv4.address="+e.Subnet.Addr().Next().Next().Next().Next().Next().String())
		}},
		{"restart of the engine", func(t *testing.T) { e.Kill(t); e.Restart(t) }},
		{"restart of the engine, stopped meanwhile", func(t *testing.T) {
			e.Run(t, "stop", "--force", alice)
			e.Kill(t)
			e.Restart(t)
		}},
		{"daemon killed", func(t *testing.T) { d.kill(); d.start(t) }},
		{"daemon killed, stopped meanwhile", func(t *testing.T) {
			d.kill()
			e.Run(t, "stop", "--force", alice)
			d.start(t)
		}},
		{"daemon replaced", func(t *testing.T) { d.terminate(t); d.start(t) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			end.end(t)
			answered(t, d.gateway, "alice", alice)
		})
	}

	t.Run("deleted", func(t *testing.T) {
		require.Equal(t, http.StatusNoContent, d.do(t, "alice", "DELETE", "/webspace/self", nil, nil))
		require.NotContains(t, e.Run(t, "list", "--format", "csv"), alice)
		status, _, err := visit(t.Context(), d.gateway, "alice.ws.example.test")
		require.NoError(t, err)
		require.Equal(t, http.StatusNotFound, status)
		require.Equal(t, http.StatusNotFound, d.do(t, "alice", "GET", "/webspace/self", nil, nil))
	})
}

// Root in a guest can give its interface any address. Nobody is ever sent there.
func TestForeignAddresses(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	const alice = "ws-u1000"
	d.create(t, "alice", e.Image)
	t.Cleanup(func() { e.Delete(t, alice) })
	answered(t, d.gateway, "alice", alice)

	// An address that this host has on the bridge, beside those of strangers.
	own := e.Subnet.Addr().Next().Next().Next().String()
	require.NoError(t, exec.Command("ip", "addr", "add", own+"/32", "dev", e.Network).Run())
	t.Cleanup(func() { _ = exec.Command("ip", "addr", "del", own+"/32", "dev", e.Network).Run() })
	visits := canary(t, own+":80")
	foreign := []string{own, "198.19.255.1", "8.8.8.8"}
	add := func() {
		for _, address := range foreign {
			e.Run(t, "exec", alice, "--", "sh", "-c", "ip addr add "+address+"/32 dev eth0 2>/dev/null; true")
		}
	}
	add()
	for _, step := range []func(){
		func() {},
		func() { d.do(t, "alice", "PUT", "/webspace/self/state", nil, nil) },
		func() { d.kill(); d.start(t) },
	} {
		step()
		answered(t, d.gateway, "alice", alice)
		add()
		answered(t, d.gateway, "alice", alice)
	}
	require.Zero(t, visits())
	for _, address := range foreign {
		require.NotContains(t, d.logs.String(), address+":80")
	}
}

// A record that is not what we wrote takes one webspace out of service, and no other.
func TestQuarantine(t *testing.T) {
	e := testbed.LXD(t)
	d := startDaemon(t, e, "ws-", nil)
	d.create(t, "alice", e.Image)
	d.create(t, "bob", e.Image)
	t.Cleanup(func() { e.Delete(t, "ws-u1000", "ws-u1001", "ws-u7") })
	e.Run(t, "config", "set", "ws-u1001", "user._webspaced", "{broken")
	e.Run(t, "copy", "ws-u1000", "ws-u7")
	require.Eventually(t, func() bool {
		status, _, err := visit(t.Context(), d.gateway, "bob.ws.example.test")
		return err == nil && status == http.StatusNotFound
	}, 10*time.Second, 50*time.Millisecond)
	require.Equal(t, http.StatusConflict, d.do(t, "bob", "GET", "/webspace/self", nil, nil))
	answered(t, d.gateway, "alice", "ws-u1000")
}
