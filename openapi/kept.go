package openapi

import (
	"context"
	"time"
)

// keepFor is how long an answer of the engine does for whoever asks next.
const keepFor = time.Second

// kept asks one question at a time, and keeps the answer for a moment. No token is needed for such questions: however
// many ask, the engine is not to notice.
type kept[T any] struct {
	turn  chan struct{} // holds a value while somebody asks
	until time.Time
	value T
	err   error
}

func newKept[T any]() *kept[T] { return &kept[T]{turn: make(chan struct{}, 1)} }

// get returns the answer to ask, which must not be changed. That a caller would not wait is no answer for others.
func (k *kept[T]) get(ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
	defer func() { <-k.turn }()
	if time.Now().Before(k.until) {
		return k.value, k.err
	}
	value, err := ask(ctx)
	if ctx.Err() == nil {
		k.value, k.err, k.until = value, err, time.Now().Add(keepFor)
	}
	return value, err
}
