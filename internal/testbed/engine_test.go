package testbed_test

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func TestLXD(t *testing.T) { testEngine(t, testbed.LXD(t), "server: lxd") }

func TestIncus(t *testing.T) { testEngine(t, testbed.Incus(t), "server: incus") }

func testEngine(t *testing.T, e *testbed.Engine, server string) {
	require.Contains(t, e.Run(t, "info"), server)
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(t *testing.T, address netip.Addr, path string) string {
		var body string
		require.Eventually(t, func() bool {
			response, err := client.Get("http://" + address.String() + path)
			if err != nil {
				return false
			}
			defer response.Body.Close()
			b, err := io.ReadAll(response.Body)
			body = string(b)
			return err == nil && response.StatusCode == http.StatusOK
		}, 30*time.Second, 20*time.Millisecond)
		return body
	}

	t.Cleanup(func() { e.Delete(t, "bed-a", "bed-b") })
	e.Run(t, "launch", e.Image, "bed-a")
	address := e.Address(t, "bed-a")
	require.True(t, e.Subnet.Contains(address))
	require.Equal(t, "hello from bed-a\n", get(t, address, "/"))
	require.Contains(t, get(t, address, "/cgi-bin/request?x"), "GET /cgi-bin/request?x\n")

	t.Run("the daemon's death", func(t *testing.T) {
		e.Kill(t)
		require.Error(t, e.Command("list").Run())
		require.Equal(t, "hello from bed-a\n", get(t, address, "/"))
		e.Restart(t)
		require.Contains(t, e.Run(t, "list", "--format=csv"), "bed-a,RUNNING")
		require.Equal(t, "hello from bed-a\n", get(t, address, "/"))
	})
	t.Run("pause", func(t *testing.T) {
		e.Pause(t)
		list := e.Command("list")
		require.NoError(t, list.Start())
		ended := make(chan error, 1)
		go func() { ended <- list.Wait() }()
		select {
		case <-ended:
			t.Error("a paused daemon answered")
		case <-time.After(200 * time.Millisecond):
		}
		e.Resume(t)
		require.NoError(t, <-ended)
	})
	t.Run("a clean stop", func(t *testing.T) {
		e.Run(t, "stop", "bed-a", "--timeout=20")
		e.Run(t, "start", "bed-a")
		require.Equal(t, "hello from bed-a\n", get(t, e.Address(t, "bed-a"), "/"))
	})
	t.Run("a deaf init", func(t *testing.T) {
		e.ImportImage(t, "deaf", testbed.Deaf())
		e.Run(t, "launch", "deaf", "bed-b")
		require.Equal(t, "hello from bed-b\n", get(t, e.Address(t, "bed-b"), "/"))
		require.Error(t, e.Command("stop", "bed-b", "--timeout=2").Run())
		e.Run(t, "stop", "bed-b", "--force")
		e.Delete(t, "bed-b")
	})
	t.Run("a fleeting guest", func(t *testing.T) {
		e.ImportImage(t, "fleeting", testbed.Fleeting())
		e.Run(t, "launch", "fleeting", "bed-b")
		require.Eventually(t, func() bool {
			return strings.Contains(e.Run(t, "list", "--format=csv", "--columns=ns"), "bed-b,STOPPED")
		}, 30*time.Second, 50*time.Millisecond)
		e.Delete(t, "bed-b")
	})
	t.Run("filtering", func(t *testing.T) {
		if e.Filtered == "" {
			t.Skip("no packet filter for bridges here")
		}
		name := e.Prefix + "filtered"
		t.Cleanup(func() { e.Delete(t, name) })
		for _, profile := range []string{e.Profile, e.Filtered} {
			e.Delete(t, name)
			e.Run(t, "launch", e.Image, name, "--profile", profile)
			own, other := e.Address(t, name), e.Gateway.Next()
			for own == other || address == other {
				other = other.Next()
			}
			e.Run(t, "exec", name, "--", "ip", "address", "add", other.String()+"/32", "dev", "eth0")
			require.Equal(t, "hello from "+name+"\n", get(t, own, "/"))
			if profile == e.Profile {
				require.Equal(t, "hello from "+name+"\n", get(t, other, "/"), "without a filter the guest gives itself an address")
				continue
			}
			_, err := client.Get("http://" + other.String())
			require.Error(t, err, "an address that the guest gave itself is reached")
		}
	})
	t.Run("a late web server", func(t *testing.T) {
		e.ImportImage(t, "late", testbed.Late(time.Second))
		e.Run(t, "launch", "late", "bed-b")
		require.Equal(t, "hello from bed-b\n", get(t, e.Address(t, "bed-b"), "/"))
		e.Delete(t, "bed-b")
	})
}
