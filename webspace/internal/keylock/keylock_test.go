package keylock

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks[string]
		unlock, err := l.Lock(t.Context(), "a")
		require.NoError(t, err)
		other, err := l.Lock(t.Context(), "b")
		require.NoError(t, err)
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = l.Lock(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		n := 0
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				unlock, err := l.Lock(t.Context(), "a")
				require.NoError(t, err)
				n++
				unlock()
			})
		}
		synctest.Wait()
		require.Zero(t, n)
		unlock()
		wg.Wait()
		require.Equal(t, 50, n)
		require.Empty(t, l.held)
	})
}
