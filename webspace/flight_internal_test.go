package webspace

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestFlightIsJoinedAndDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFlights[string, int]()
		defer g.close()
		var flown atomic.Int32
		fly := func(ctx context.Context) (int, error) {
			flown.Add(1)
			time.Sleep(time.Second)
			return 7, ctx.Err()
		}
		first, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := g.do(first, "a", fly)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				v, err := g.do(t.Context(), "a", fly)
				require.NoError(t, err)
				require.Equal(t, 7, v)
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, flown.Load())
		require.Empty(t, g.flying)
	})
}

func TestFlightIsForgotten(t *testing.T) {
	g := newFlights[string, int]()
	defer g.close()
	lost := errors.New("lost")
	for range 3 {
		_, err := g.do(t.Context(), "a", func(context.Context) (int, error) { return 0, lost })
		require.ErrorIs(t, err, lost)
	}
	v, err := g.do(t.Context(), "a", func(context.Context) (int, error) { return 1, nil })
	require.NoError(t, err)
	require.Equal(t, 1, v)
}

func TestFlightsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFlights[int, int]()
		var landed atomic.Int32
		for i := range 10 {
			go func() {
				_, err := g.do(t.Context(), i, func(ctx context.Context) (int, error) {
					<-ctx.Done()
					time.Sleep(time.Second)
					landed.Add(1)
					return 0, ctx.Err()
				})
				require.ErrorIs(t, err, context.Canceled)
			}()
		}
		synctest.Wait()
		go g.close()
		g.close()
		require.EqualValues(t, 10, landed.Load())
		_, err := g.do(t.Context(), 1, nil)
		require.True(t, errdefs.IsUnavailable(err))
	})
}
