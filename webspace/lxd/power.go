package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"
)

// busyLimit is how long an instance may be busy with another operation before that is the caller's problem.
const busyLimit = 5 * time.Second

// Start implements [webspace.Runtime].
func (r *Runtime) Start(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return retry(ctx, busyLimit, func() error {
		err := r.start(ctx, name)
		if !errors.Is(err, errAlready) {
			return err
		}
		// To the engine, one that is about to stop runs, and one that is frozen too.
		if err := r.idle(ctx, name); err != nil {
			return err
		}
		i, _, err := r.instance(ctx, name)
		if err != nil || i.StatusCode != api.Frozen {
			return err
		}
		return r.setState(ctx, name, r.opts.StartTimeout, api.InstanceStatePut{Action: "unfreeze", Timeout: -1})
	})
}

// Stop implements [webspace.Runtime]. The engine counts grace in seconds: it is rounded up.
func (r *Runtime) Stop(ctx context.Context, name string, grace time.Duration) error {
	if err := checkName(name); err != nil {
		return err
	}
	if grace > 0 {
		seconds := int((grace + time.Second - 1) / time.Second)
		err := retry(ctx, busyLimit, func() error {
			return r.setState(ctx, name, grace+r.opts.CallTimeout, api.InstanceStatePut{Action: "stop", Timeout: seconds})
		})
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || errdefs.IsNotFound(err):
			return err
		}
		// It ignored the request, or can not be asked.
	}
	return retry(ctx, busyLimit, func() error {
		err := r.setState(ctx, name, r.opts.StartTimeout, api.InstanceStatePut{Action: "stop", Force: true})
		if errors.Is(err, errAlready) {
			return r.idle(ctx, name) // or it is about to start
		}
		return err
	})
}

// powering are the operations that change whether an instance runs, as the engines describe them.
var powering = map[string]bool{
	"Creating instance":   true,
	"Starting instance":   true,
	"Stopping instance":   true,
	"Restarting instance": true,
}

// idle returns an error while the engine is about to start or stop an instance. Before that takes effect, the instance looks
// as if nothing had been asked of it, and whoever asked may wait no longer.
func (r *Runtime) idle(ctx context.Context, name string) error {
	var byStatus map[string][]api.Operation
	if _, err := r.client.get(ctx, r.client.path(url.Values{"recursion": {"1"}}, "operations"), &byStatus); err != nil {
		return err
	}
	for _, operations := range byStatus {
		for _, op := range operations {
			if op.StatusCode.IsFinal() || !powering[op.Description] {
				continue
			}
			for _, resource := range op.Resources["instances"] {
				if path, _, _ := strings.Cut(resource, "?"); path == "/1.0/instances/"+name {
					return fmt.Errorf("lxd: %s: %s: %w", name, op.Description, errBusy)
				}
			}
		}
	}
	return nil
}

// Restart implements [webspace.Runtime]. It is a stop and a start to the engine as well, whose own restart takes its timeout
// for nanoseconds in LXD 5.0, and does not force.
func (r *Runtime) Restart(ctx context.Context, name string, grace time.Duration) error {
	i, _, err := r.instance(ctx, name)
	if err != nil {
		return err
	}
	if !i.IsActive() {
		return fmt.Errorf("lxd: %s does not run: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err := r.Stop(ctx, name, grace); err != nil {
		return err
	}
	return r.Start(ctx, name)
}

func (r *Runtime) setState(ctx context.Context, name string, timeout time.Duration, state api.InstanceStatePut) error {
	return r.client.change(ctx, timeout, http.MethodPut, r.client.path(nil, "instances", name, "state"), state, "")
}
