package webspace_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/runtimetest"
)

// However a host name is spelled, it leads to its owner or to nobody.
func TestSpellingsOfAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) { w.users.add(7, "kim") })
		for _, id := range []int{7, 1000, 1001} {
			w.create(w.user(idOf(fmt.Sprintf("ws-u%d", id))).ID)
		}
		require.NoError(t, w.AddDomain(t.Context(), 1001, "bob.example.org"))

		owners := map[string]string{"kim.example.test": "ws-u7", "alice.example.test": "ws-u1000", "bob.example.test": "ws-u1001", "bob.example.org": "ws-u1001"}
		spellings := 0
		for host, owner := range owners {
			first, rest, _ := strings.Cut(host, ".")
			for _, good := range []string{host, strings.ToUpper(host), host + ".", strings.ToUpper(first) + "." + rest, first + "." + strings.ToUpper(rest) + "."} {
				target, err := w.Route(good)
				require.NoError(t, err, good)
				require.Equal(t, owner, target.Webspace)
				spellings++
			}
			bad := []string{
				host + "..", "." + host, first + ".." + rest, host + ":80", "x." + host, first, rest, "*." + rest, "*", host + "/", "/" + host,
				" " + host, host + " ", host + "\x00", "\x00" + host, host + "\n", host + "\t", "\"" + host + "\"", "[" + host + "]", "`" + host + "`",
				strings.ReplaceAll(host, ".", "。"), strings.ReplaceAll(host, "k", "\u212a") + ".x", strings.ReplaceAll(host, "i", "ı") + "x", "xn--" + host,
				host + "%00", "%61" + host, strings.ReplaceAll(host, "e", "%65"), host + "@x", "x@" + host, host + ",x", "x," + host, host + ";", host + "#", host + "?",
				"{" + host + "}", "http://" + host, host + "\u200b", "\u200b" + host, "\ufeff" + host, strings.ReplaceAll(host, "e", "е"), strings.ReplaceAll(host, "e", "ｅ"),
				"-" + host, first + "-." + rest, first + "_." + rest, strings.Repeat("a.", 200) + host, strings.Repeat(host+".", 100), host + strings.Repeat(".", 300),
			}
			for _, spelling := range bad {
				target, err := w.Route(spelling)
				require.True(t, errdefs.IsNotFound(err), "%.60q leads to %s", spelling, target.Webspace)
				spellings++
			}
		}
		_, err := w.Route("\u212aim.example.test") // the Kelvin sign, whose lower case is k
		require.True(t, errdefs.IsNotFound(err))
		_, err = w.Route("")
		require.True(t, errdefs.IsNotFound(err))
		require.GreaterOrEqual(t, spellings, 200)
	})
}

func TestNamesThatDifferInCase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *runtimetest.FakeOptions) {
			w.users.add(500, "Sam")
			w.users.add(600, "sAM")
			w.users.add(700, "SAM")
		})
		var none webspace.Instance
		for _, id := range []int{700, 600, 500} { // made elsewhere, before the users had these names
			w.runtime.Put(stored(idOf(fmt.Sprintf("ws-u%d", id)), webspace.StatusStopped, none.Address))
			w.settled()
		}
		for _, owner := range []string{"ws-u500", "ws-u600", "ws-u700"} {
			target, err := w.Route("sam.example.test")
			require.NoError(t, err)
			require.Equal(t, owner, target.Webspace)
			for _, s := range w.Summaries() {
				if s.Instance == owner {
					require.Empty(t, s.Problem)
					require.Equal(t, gatewayURL, w.backend(s.Instance))
				} else {
					require.Contains(t, s.Problem, "sam.example.test belongs to another webspace")
					require.Empty(t, w.backend(s.Instance))
				}
			}
			// After a restart it is the same.
			w.stop()
			w.start()
			w.settled()
			target, err = w.Route("sam.example.test")
			require.NoError(t, err)
			require.Equal(t, owner, target.Webspace)
			require.NoError(t, w.Delete(t.Context(), idOf(owner)))
			time.Sleep(time.Second)
			synctest.Wait()
		}
		require.Empty(t, w.Summaries())
	})
}
