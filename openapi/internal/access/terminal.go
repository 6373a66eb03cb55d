package access

import (
	"context"

	"github.com/netsoc/webspaced/webspace"
)

// Exec is [webspace.Manager.Exec].
func (w Writer) Exec(ctx context.Context, opts webspace.ExecOptions) (exitCode int, err error) {
	return w.manager.Exec(ctx, w.owner.ID, opts)
}

// Console is [webspace.Manager.Console].
func (w Writer) Console(ctx context.Context, opts webspace.ConsoleOptions) error {
	return w.manager.Console(ctx, w.owner.ID, opts)
}
