package redis_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/redis"
)

func TestTraefik(t *testing.T) {
	traefiktest.Run(t, func(t *testing.T, _ testbed.TraefikVersion) traefiktest.Store {
		server := testbed.Redis(t)
		db := dial(t, server)
		const poison = "traefik/http/services/somebody/loadBalancer/passHostHeader"
		return traefiktest.Store{
			Flags: []string{"--providers.redis.endpoints=" + server.Address},
			Open: func(challengeURL string) (provider.Provider, error) {
				return open(t, server, redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", ChallengeURL: challengeURL}), nil
			},
			Poison: func() error { return db.Set(t.Context(), poison, "notabool", 0).Err() },
			Cure: func() error {
				value, err := db.Get(t.Context(), poison).Result()
				require.Equal(t, "notabool", value)
				require.NoError(t, err)
				return db.Del(t.Context(), poison).Err()
			},
			Away: server.Kill,
			Back: func() { server.Restart(t) },
		}
	})
}
