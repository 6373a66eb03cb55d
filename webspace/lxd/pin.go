package lxd

import (
	"context"
	"errors"
	"maps"
	"net/http"

	"github.com/lxc/lxd/shared/api"
)

// start starts an instance, and gives it another address before if its own is taken.
//
// Whoever copies an instance with the engine's own tools copies its pinned address with it. The engine lets them, and then
// starts neither of the two. Which of them is to keep the address is not known here, and the other one is not ours to
// change: so the one that is started gets a new one.
func (r *Runtime) start(ctx context.Context, name string) error {
	for tries := 4; ; tries-- {
		err := r.setState(ctx, name, r.opts.StartTimeout, api.InstanceStatePut{Action: "start", Timeout: -1})
		if !errors.Is(err, errAddressTaken) || tries == 1 {
			return err
		}
		if pinned, failure := r.repin(ctx, name); failure != nil {
			return failure
		} else if !pinned {
			return err
		}
	}
}

// repin pins a free address to the NIC of a stopped instance. It reports false if the NIC has none of its own: then it is the
// profile that has to be changed.
func (r *Runtime) repin(ctx context.Context, name string) (pinned bool, err error) {
	n, err := r.readNIC(ctx)
	if err != nil {
		return false, connected(err)
	}
	i, etag, err := r.instance(ctx, name)
	if err != nil {
		return false, err
	}
	device, _ := n.of(i)
	old := i.Devices[device]["ipv4.address"]
	if old == "" {
		return false, nil
	}
	address, release, err := r.reserve(ctx, n, name)
	if err != nil || !address.IsValid() {
		return false, err
	}
	defer release()
	config := maps.Clone(i.Devices[device])
	config["ipv4.address"] = address.String()
	// Whatever a PATCH leaves out stays, except the description.
	change := map[string]any{"devices": map[string]map[string]string{device: config}, "description": i.Description}
	if err := r.client.change(ctx, r.opts.CallTimeout, http.MethodPatch, r.client.path(nil, "instances", name), change, etag); err != nil {
		return false, err
	}
	r.opts.Logger.Warn("another instance has the same pinned address; this one gets a new one", "instance", name, "old", old, "new", address)
	return true, nil
}
