package lxd

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
)

// Log implements [webspace.Logger].
func (r *Runtime) Log(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, r.opts.CallTimeout)
	defer cancel()
	body, err := r.client.stream(bounded, r.client.path(nil, "instances", name, "console"))
	if err != nil {
		return nil, r.unlessNoLog(ctx, name, err)
	}
	defer body.Close()
	log, err := tail(body, limit)
	if err != nil {
		return nil, r.client.classify(ctx, err)
	}
	return log, nil
}

// ClearLog implements [webspace.Logger].
func (r *Runtime) ClearLog(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	_, _, err := r.client.call(ctx, http.MethodDelete, r.client.path(nil, "instances", name, "console"), nil, "")
	return r.unlessNoLog(ctx, name, err)
}

// unlessNoLog drops an error that says that there is no log of an instance that exists.
func (r *Runtime) unlessNoLog(ctx context.Context, name string, err error) error {
	if err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	_, _, err = r.instance(ctx, name)
	return err
}

// tail returns the last limit bytes of r.
func tail(r io.Reader, limit int64) ([]byte, error) {
	limit = max(limit, 0)
	var kept []byte
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Read(buffer)
		kept = append(kept, buffer[:n]...)
		if extra := int64(len(kept)) - limit; extra > 0 && (err != nil || extra > int64(len(buffer))) {
			kept = append(kept[:0], kept[extra:]...)
		}
		if err == io.EOF {
			return kept, nil
		}
		if err != nil {
			return nil, fmt.Errorf("console log: %w", err)
		}
	}
}
