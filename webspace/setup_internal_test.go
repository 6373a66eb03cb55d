package webspace

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// What an account calls its keys is outside input, and goes into a file that says who may log in as root.
func FuzzAuthorizedKeys(f *testing.F) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	f.Add(key)
	f.Add(key + " a comment\n# another\r\n" + key)
	f.Add(`command="/bin/false",no-pty ` + key)
	f.Add("environment=\"A=\\\"\n" + key + "\" " + key)
	f.Add("ecdsa-sha2-nistp256 AAAA\x00")
	f.Fuzz(func(t *testing.T, s string) {
		lines, err := authorizedKeys([]string{s})
		if err != nil {
			require.True(t, errdefs.IsInvalidArgument(err))
			require.Empty(t, lines)
			return
		}
		require.True(t, strings.HasSuffix(lines, "\n"))
		for line := range strings.Lines(lines) {
			public, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
			require.NoError(t, err)
			require.Empty(t, comment)
			require.Empty(t, options)
			require.Empty(t, rest)
			require.Equal(t, line, string(ssh.MarshalAuthorizedKey(public)))
			require.Len(t, strings.Fields(line), 2)
		}
		again, err := authorizedKeys([]string{lines})
		require.NoError(t, err)
		require.Equal(t, lines, again)
	})
}
