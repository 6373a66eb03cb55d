package webspace

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
)

func TestLabel(t *testing.T) {
	good := map[string]string{
		"alice": "alice", "Alice": "alice", "ALICE": "alice", "a": "a", "0": "0", "a-b": "a-b", "a--b": "a--b",
		"x0-9": "x0-9", strings.Repeat("a", 63): strings.Repeat("a", 63), "xn--mller-kva": "xn--mller-kva",
	}
	for username, want := range good {
		label, err := Label(username)
		require.NoError(t, err, username)
		require.Equal(t, want, label)
		again, err := Label(label)
		require.NoError(t, err)
		require.Equal(t, label, again)
	}
	bad := []string{
		"", "-", "-a", "a-", "a.b", "alice.", ".alice", "a_b", "a b", " alice", "alice ", "alice\n", "alice\x00", "a/b", "a*", "*",
		"müller", "MÜLLER", "\u212alaus", "\u017fam", "alice\u200b", "аlice", "ａｌｉｃｅ", "ı", "İ", "a\xff", "`", "{{a}}", "a|b",
		strings.Repeat("a", 64), strings.Repeat("a", 1<<16),
	}
	for _, username := range bad {
		_, err := Label(username)
		require.True(t, errdefs.IsInvalidArgument(err), "%.20q", username)
		require.Less(t, len(err.Error()), 600)
	}
}

// No two usernames share a host name unless they differ in case alone.
func FuzzLabel(f *testing.F) {
	f.Add("alice", "Alice")
	f.Add("K", "\u212a")
	f.Add("s", "\u017f")
	f.Fuzz(func(t *testing.T, a, b string) {
		la, errA := Label(a)
		lb, errB := Label(b)
		if errA == nil && errB == nil && la == lb {
			require.Equal(t, len(a), len(b))
			require.True(t, strings.EqualFold(a, b))
		}
		if errA == nil {
			_, err := parseZone(la)
			require.Equal(t, strings.Trim(la, "0123456789") == "" || isHex(la), err != nil, la)
		}
	})
}

func isHex(s string) bool {
	digits, ok := strings.CutPrefix(s, "0x")
	return ok && strings.Trim(digits, "0123456789abcdef") == ""
}

func TestParseDomain(t *testing.T) {
	const zone = "members.example.test"
	good := map[string]string{
		"a.example.org": "a.example.org", "A.Example.ORG.": "a.example.org", "example.org": "example.org",
		"xn--mller-kva.de": "xn--mller-kva.de", "other.example.test": "other.example.test", "members.example.test.org": "members.example.test.org",
		"xmembers.example.test": "xmembers.example.test", "me.github.io": "me.github.io", "a.b.co.uk": "a.b.co.uk",
	}
	for domain, want := range good {
		host, err := parseDomain(domain, zone)
		require.NoError(t, err, domain)
		require.Equal(t, want, host.String())
	}
	bad := []string{
		"", ".", "..", "org", "org.", "localhost", "a..org", "a.example.org..", ".a.example.org", "*.example.org", "*", "a.*.org",
		"members.example.test", "MEMBERS.example.test.", "alice.members.example.test", "x.alice.members.example.test", "example.test",
		"co.uk", "CO.UK.", "github.io", "com.au", "s3.amazonaws.com",
		"127.0.0.1", "1.2.3.4.", "0x7f.1", "127.1", "a.1", "a.0x1", "[::1]", "::1", "a.example.org:80", "http://a.example.org", "a.example.org/x",
		"müller.de", "a_b.example.org", "-a.example.org", "a-.example.org", "a b.example.org", "a.example.org\n", "`", "a`.example.org",
		"{{env}}.example.org", "a.example.org) || Host(b", "\u212a.example.org", "a。example。org",
		strings.Repeat("a", 64) + ".example.org", strings.Repeat("a.", 126) + "org",
	}
	for _, domain := range bad {
		_, err := parseDomain(domain, zone)
		require.True(t, errdefs.IsInvalidArgument(err), "%.40q", domain)
	}
	_, err := parseDomain("a.localhost", "localhost")
	require.Error(t, err)
}

func TestParseZone(t *testing.T) {
	for s, want := range map[string]string{"Example.TEST.": "example.test", "localhost": "localhost"} {
		zone, err := parseZone(s)
		require.NoError(t, err)
		require.Equal(t, want, zone)
	}
	for _, s := range []string{"", ".", "1.2.3.4", "*.example.org", "a_b", strings.Repeat("a.", 100) + "org"} {
		_, err := parseZone(s)
		require.True(t, errdefs.IsInvalidArgument(err), s)
	}
}

func TestInstanceNames(t *testing.T) {
	for _, id := range []identity.UserID{1, 42, 1<<63 - 1} {
		user, ok := instanceUser("ws-", instanceName("ws-", id))
		require.True(t, ok)
		require.Equal(t, id, user)
	}
	for _, name := range []string{"", "ws-", "ws-u", "ws-u0", "ws-u-1", "ws-u+1", "ws-u007", "ws-u1x", "WS-u1", "ws-U1", "ws-u9223372036854775808", "xws-u1", "ws-u1 ", "ws-u1.old"} {
		_, ok := instanceUser("ws-", name)
		require.False(t, ok, name)
	}
}
