package openapi

import (
	"math"
	"strconv"
	"time"

	"github.com/netsoc/webspaced/webspace"
)

// seconds is a number of seconds as a duration. What a duration can not hold becomes the longest one.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

func newImage(i webspace.Image) Image {
	out := Image{Aliases: make([]ImageAlias, len(i.Aliases)), Fingerprint: i.Fingerprint, Properties: i.Properties, Size: i.Size}
	for j, a := range i.Aliases {
		out.Aliases[j] = ImageAlias{Name: a.Name, Description: a.Description}
	}
	if out.Properties == nil {
		out.Properties = map[string]string{}
	}
	return out
}

func newConfig(c webspace.Config) Config {
	delay := c.StartupDelay.Seconds()
	return Config{StartupDelay: &delay, HTTPPort: &c.HTTPPort, SNIPassthrough: &c.SNIPassthrough}
}

func newWebspace(w webspace.Webspace) Webspace {
	return Webspace{User: int64(w.User), Config: newConfig(w.Config), Domains: append([]string{}, w.Domains...), Ports: newPorts(w.Ports)}
}

func newPorts(ports map[int]int) Ports {
	out := make(Ports, len(ports))
	for external, internal := range ports {
		out[strconv.Itoa(external)] = internal
	}
	return out
}

func newSummary(s webspace.Summary) WebspaceSummary {
	out := WebspaceSummary{
		User: int64(s.User), Config: newConfig(s.Config), Domains: append([]string{}, s.Domains...), Ports: newPorts(s.Ports),
		Instance: s.Instance, Status: string(s.Status), Hosts: append([]string{}, s.Hosts...),
		Backend: optional(s.Backend), Problem: optional(s.Problem),
	}
	if s.Address.IsValid() {
		out.Address = optional(s.Address.String())
	}
	return out
}

// optional is a field that is missing if it is empty.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func newState(s webspace.State, problem string) State {
	status := string(s.Status)
	out := State{
		Status:            &status,
		Problem:           optional(problem),
		Running:           s.Status == webspace.StatusRunning,
		Usage:             Usage{CPU: int64(s.CPU), Disks: s.Disks, Memory: s.Memory, Processes: s.Processes},
		NetworkInterfaces: make(map[string]NetworkInterface, len(s.Interfaces)),
	}
	if !s.StartedAt.IsZero() {
		out.Uptime = max(0, time.Since(s.StartedAt).Seconds())
	}
	if out.Usage.Disks == nil {
		out.Usage.Disks = map[string]int64{}
	}
	for name, i := range s.Interfaces {
		n := NetworkInterface{
			MAC: i.MAC, MTU: i.MTU, State: i.State, Addresses: make([]InterfaceAddress, len(i.Addresses)),
			Counters: InterfaceCounters{
				BytesReceived: i.BytesReceived, BytesSent: i.BytesSent,
				PacketsReceived: i.PacketsReceived, PacketsSent: i.PacketsSent,
			},
		}
		for j, a := range i.Addresses {
			n.Addresses[j] = InterfaceAddress{Family: a.Family, Address: a.Address, Netmask: a.Netmask, Scope: a.Scope}
		}
		out.NetworkInterfaces[name] = n
	}
	return out
}
