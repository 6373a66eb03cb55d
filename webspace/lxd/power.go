package lxd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
		err := r.setState(ctx, name, r.opts.StartTimeout, api.InstanceStatePut{Action: "start", Timeout: -1})
		if !errors.Is(err, errAlready) {
			return err
		}
		// To the engine, one that is frozen runs.
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
		case err == nil || errors.Is(err, errAlready):
			return nil
		case ctx.Err() != nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err):
			return err
		}
		// It ignored the request, or is in a state in which it can not be asked.
	}
	err := retry(ctx, busyLimit, func() error {
		return r.setState(ctx, name, r.opts.StartTimeout, api.InstanceStatePut{Action: "stop", Force: true})
	})
	if errors.Is(err, errAlready) {
		return nil
	}
	return err
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
