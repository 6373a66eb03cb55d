package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/config"
)

func TestRecheckFollowsTheCache(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{
		0: time.Second, 200 * time.Millisecond: time.Second, 5 * time.Second: 5 * time.Second, time.Hour: 30 * time.Second,
	} {
		require.Equal(t, want, apiOptions(&config.Config{Identity: config.Identity{CacheTTL: ttl}}, nil).Recheck, ttl)
	}
}
