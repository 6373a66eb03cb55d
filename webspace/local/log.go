//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Log implements [webspace.Logger].
func (r *Runtime) Log(ctx context.Context, name string, limit int64) ([]byte, error) {
	i, err := r.find(ctx, name)
	if err != nil {
		return nil, err
	}
	defer i.mu.Unlock()
	log, err := tail(filepath.Join(i.dir, consoleFile), min(limit, 2*r.opts.LogSize))
	if err != nil {
		return nil, fmt.Errorf("log of instance %q: %w", name, err)
	}
	return log, nil
}

// ClearLog implements [webspace.Logger].
func (r *Runtime) ClearLog(ctx context.Context, name string) error {
	i, err := r.find(ctx, name)
	if err != nil {
		return err
	}
	defer i.mu.Unlock()
	// Not removed: who writes to it has it open.
	if err := ignoreNotExist(os.Truncate(filepath.Join(i.dir, consoleFile), 0)); err != nil {
		return fmt.Errorf("log of instance %q: %w", name, err)
	}
	return nil
}

// tail returns the last bytes of a file, none of one that is not there.
func tail(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	offset := max(0, info.Size()-max(0, limit))
	return io.ReadAll(io.NewSectionReader(f, offset, info.Size()-offset))
}

// trimLogs keeps the console logs at their size until the runtime is closed. The processes write to the files
// themselves, for they outlive this program, so what is too much is cut off afterwards.
func (r *Runtime) trimLogs() {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-r.ctx.Done():
			return
		}
		for _, i := range r.all() {
			i.mu.Lock()
			if i.process != nil {
				trim(filepath.Join(i.dir, consoleFile), r.opts.LogSize)
			}
			i.mu.Unlock()
		}
	}
}

// trim leaves the second half of a file that is too large. A line that is written meanwhile may be lost.
func trim(path string, size int64) {
	if info, err := os.Stat(path); err != nil || info.Size() <= size {
		return
	}
	log, err := tail(path, size/2)
	if err != nil || os.Truncate(path, 0) != nil {
		return
	}
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
		_, _ = f.Write(log)
		_ = f.Close()
	}
}
