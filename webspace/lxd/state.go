package lxd

import (
	"context"
	"net/url"
	"time"

	"github.com/lxc/lxd/shared/api"

	"github.com/netsoc/webspaced/webspace"
)

// State implements [webspace.Runtime].
func (r *Runtime) State(ctx context.Context, name string) (webspace.State, error) {
	if err := checkName(name); err != nil {
		return webspace.State{}, err
	}
	// With recursion, an instance comes with its state in one call.
	var i api.InstanceFull
	if _, err := r.client.get(ctx, r.client.path(url.Values{"recursion": {"1"}}, "instances", name), &i); err != nil {
		return webspace.State{}, err
	}
	state := webspace.State{Status: statusOf(i.StatusCode)}
	if !i.IsActive() || i.State == nil {
		return state, nil
	}
	state.StartedAt = i.LastUsedAt
	state.CPU = time.Duration(i.State.CPU.Usage)
	state.Memory = i.State.Memory.Usage
	state.Processes = i.State.Processes
	state.Disks = map[string]int64{}
	for device, disk := range i.State.Disk {
		state.Disks[device] = disk.Usage
	}
	state.Interfaces = map[string]webspace.Interface{}
	for device, network := range i.State.Network {
		if network.Type == "loopback" {
			continue
		}
		face := webspace.Interface{
			MAC:             network.Hwaddr,
			MTU:             network.Mtu,
			State:           network.State,
			BytesReceived:   network.Counters.BytesReceived,
			BytesSent:       network.Counters.BytesSent,
			PacketsReceived: network.Counters.PacketsReceived,
			PacketsSent:     network.Counters.PacketsSent,
		}
		for _, a := range network.Addresses {
			face.Addresses = append(face.Addresses, webspace.InterfaceAddress(a))
		}
		state.Interfaces[device] = face
	}
	return state, nil
}
