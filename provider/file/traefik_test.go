package file_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func TestTraefik(t *testing.T) {
	traefiktest.Run(t, func(t *testing.T, _ testbed.TraefikVersion) traefiktest.Store {
		dir := t.TempDir()
		foreign := filepath.Join(dir, "foreign.yml")
		const poison = "http: [what, {{ is this"
		return traefiktest.Store{
			Flags: []string{"--providers.file.directory=" + dir},
			Open: func(challengeURL string) (provider.Provider, error) {
				return file.New(dir, &file.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", ChallengeURL: challengeURL})
			},
			Poison: func() error { return os.WriteFile(foreign, []byte(poison), 0o644) },
			Cure: func() error {
				content, err := os.ReadFile(foreign)
				require.Equal(t, poison, string(content))
				require.NoError(t, err)
				return os.Remove(foreign)
			},
		}
	})
}
