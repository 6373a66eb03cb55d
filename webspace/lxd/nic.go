package lxd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/lxc/lxd/shared/api"
)

// nic is the profile's device through which instances are reached, and its network.
type nic struct {
	device  string            // its name; empty: the profile has none on a managed network
	config  map[string]string // as the profile has it
	network string            // managed by the engine
	subnet  subnet
	readAt  time.Time
}

// nicAge is how long what was read of the profile and its network is good for. Reading a network makes the engine look at
// every instance, which is too much for each Get.
const nicAge = time.Minute

// currentNIC returns the NIC as it was lately.
func (r *Runtime) currentNIC(ctx context.Context) (nic, error) {
	r.mu.Lock()
	n := r.nic
	r.mu.Unlock()
	if time.Since(n.readAt) < nicAge {
		return n, nil
	}
	fresh, err := r.readNIC(ctx)
	switch {
	case err == nil:
		return fresh, nil
	case ctx.Err() != nil || errdefs.IsUnavailable(err) && !errors.Is(err, errFailed):
		return nic{}, err
	}
	// The profile or the network is gone, or no longer for us to see. Instances that have been made are still where they were.
	r.opts.Logger.Warn("profile of new instances can not be read", "profile", r.opts.Profile, "error", err)
	n.readAt = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nic = n
	return n, nil
}

// readNIC reads the profile and the network of its NIC.
func (r *Runtime) readNIC(ctx context.Context) (nic, error) {
	var profile api.Profile
	if _, err := r.client.get(ctx, r.client.path(nil, "profiles", r.opts.Profile), &profile); err != nil {
		return nic{}, precondition("profile "+r.opts.Profile, err)
	}
	n := nic{readAt: time.Now()}
	names := slices.Sorted(maps.Keys(profile.Devices))
	if r.opts.NIC != "" {
		if profile.Devices[r.opts.NIC]["type"] != "nic" {
			return nic{}, fmt.Errorf("lxd: profile %s has no NIC %s: %w", r.opts.Profile, r.opts.NIC, errdefs.ErrFailedPrecondition)
		}
		names = []string{r.opts.NIC}
	}
	for _, name := range names {
		device := profile.Devices[name]
		network := networkOf(device)
		if device["type"] != "nic" || network == "" {
			continue
		}
		var found api.Network
		if _, err := r.client.get(ctx, r.client.path(nil, "networks", network), &found); err != nil {
			return nic{}, precondition("network "+network, err)
		}
		if found.Managed {
			n.device, n.config, n.network, n.subnet = name, device, network, parseSubnet(found.Config)
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nic = n
	return n, nil
}

// precondition turns NotFound, which in our callers' contracts is about something else, into FailedPrecondition.
func precondition(what string, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("lxd: there is no %s: %w", what, errdefs.ErrFailedPrecondition)
	}
	return err
}

// networkOf returns the network or bridge that a NIC is on.
func networkOf(device map[string]string) string {
	if n := device["network"]; n != "" {
		return n
	}
	return device["parent"]
}

// warn logs what makes it easier for a guest to pretend to be somebody else.
func (n nic) warn(log *slog.Logger) {
	if !n.subnet.prefix.IsValid() {
		log.Warn("profile has no NIC on a managed network with IPv4: instances get no address, except in trusted prefixes")
		return
	}
	for _, filter := range []string{"security.mac_filtering", "security.ipv4_filtering"} {
		if v := n.config[filter]; v != "true" && v != "1" && v != "yes" && v != "on" {
			log.Warn("profile does not keep guests from using the addresses of others", "nic", n.device, "missing", filter)
		}
	}
}
