//go:build linux

package local

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// followInterval is how often a console looks for what the instance has printed.
const followInterval = 50 * time.Millisecond

// Console implements [webspace.Consoler]. An instance prints into its log, which is followed here; it has no terminal, and
// its input is empty, so what is typed is discarded. For a shell there is Exec.
func (r *Runtime) Console(ctx context.Context, name string, opts webspace.ConsoleOptions) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	p := i.process
	if p == nil {
		i.mu.Unlock()
		return fmt.Errorf("instance %q does not run: %w", name, errdefs.ErrFailedPrecondition)
	}
	log, err := os.Open(filepath.Join(i.dir, consoleFile))
	i.mu.Unlock()
	if err != nil {
		return fmt.Errorf("console of instance %q: %w", name, err)
	}
	defer log.Close()
	offset, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("console of instance %q: %w", name, err)
	}
	if opts.Stdin != nil {
		go func() { _, _ = io.Copy(io.Discard, opts.Stdin) }()
	}
	var resize <-chan webspace.TerminalSize
	if opts.Terminal != nil {
		resize = opts.Terminal.Resize
	}
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for ended := false; ; {
		if offset, err = follow(log, offset, opts.Stdout); err != nil || ended {
			return err
		}
		select {
		case <-ticker.C:
		case _, ok := <-resize:
			if !ok {
				resize = nil
			}
		case <-p.exited:
			ended = true
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return errClosed
		}
	}
}

// follow copies what a log has from an offset on, and returns the next one. After the log was trimmed or cleared that is
// its end.
func follow(log *os.File, offset int64, w io.Writer) (int64, error) {
	info, err := log.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() <= offset || w == nil {
		return info.Size(), nil
	}
	n, err := io.Copy(w, io.NewSectionReader(log, offset, info.Size()-offset))
	return offset + n, err
}
