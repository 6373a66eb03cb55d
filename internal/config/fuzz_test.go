package config_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/config"
)

// FuzzLoad loads files and variables from outside. Loading never panics, never takes a key that is unknown, and no
// token that was loaded shows up in what is printed of the configuration, of a warning or of a mistake.
func FuzzLoad(f *testing.F) {
	f.Add(valid, "WSD_IAM_TOKEN=CANARY-inline")
	f.Add(config.Sample(), "WSD_GATEWAY_TRUSTED_PROXIES=[::1, 198.18.0.0/24]")
	f.Add("iam: &a {token: *a}\n", "WSD_=")
	f.Add("identity: {static: {users: [{id: 1, username: a, token: CANARY-user}, *x]}}", "WSD_IDENTITY_STATIC_USERS=[[]]")
	f.Add("? [a]\n: b\n", "")
	f.Add("a: &a [*a, *a]\nhttp: {cors: {allowed_origins: *a}}", "")
	f.Add("<<: {log_level: debug}", "")
	f.Add("---\n...\n---\n", "")
	f.Fuzz(func(t *testing.T, text, variable string) {
		if strings.Contains(text+variable, "_file") || strings.Contains(variable, "_FILE") {
			t.Skip("names files of this machine")
		}
		path := t.TempDir() + "/webspaced.yaml"
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		c, warnings, err := config.Load(path, []string{variable, "WSD_TRAEFIK_REDIS_PASSWORD=CANARY-key"})
		for _, w := range warnings {
			requireNoSecret(t, strings.ReplaceAll(w.Error(), path, ""))
		}
		if err != nil {
			require.Nil(t, c)
			require.NotEmpty(t, err.Error())
			require.NotContains(t, err.Error(), "CANARY-key")
			return
		}
		var shown strings.Builder
		_, err = c.WriteTo(&shown)
		require.NoError(t, err)
		for _, printed := range []string{shown.String(), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", *c)} {
			require.NotContains(t, printed, "CANARY-key")
		}

		// The same file with a key that nobody knows is refused.
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, _, err = config.Load(path, []string{variable, "WSD_NOBODY_KNOWS_THIS=1"})
		require.ErrorContains(t, err, "unknown variable")
		if strings.HasPrefix(text, "\nwebspaces:") {
			require.NoError(t, os.WriteFile(path, []byte("nobody_knows_this: 1"+text), 0o600))
			_, _, err = config.Load(path, []string{variable})
			require.ErrorContains(t, err, "nobody_knows_this")
		}
	})
}
