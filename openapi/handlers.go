package openapi

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

// handlers implement the operations of the document. They turn errors over to whoever calls them, by their class.
type handlers struct{ gate *access.Gate }

var _ StrictServerInterface = handlers{}

func (h handlers) GetHealth(ctx context.Context, _ GetHealthRequestObject) (GetHealthResponseObject, error) {
	if err := h.gate.Healthy(ctx); err != nil {
		return nil, statusError{err, http.StatusInternalServerError}
	}
	return GetHealth204Response{}, nil
}

func (h handlers) GetImages(ctx context.Context, _ GetImagesRequestObject) (GetImagesResponseObject, error) {
	images, err := h.gate.Images(ctx)
	if err != nil {
		return nil, err
	}
	out := make(GetImages200JSONResponse, len(images))
	for i, image := range images {
		out[i] = newImage(image)
	}
	return out, nil
}

func (h handlers) GetWebspace(ctx context.Context, req GetWebspaceRequestObject) (GetWebspaceResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	w, err := reader.Get(ctx)
	if err != nil {
		return nil, err
	}
	return GetWebspace200JSONResponse{WebspaceJSONResponse(newWebspace(w))}, nil
}

func (h handlers) CreateWebspace(ctx context.Context, req CreateWebspaceRequestObject) (CreateWebspaceResponseObject, error) {
	writer, err := h.gate.Write(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	create := webspace.CreateRequest{Image: req.Body.Image}
	if req.Body.Password != nil {
		create.Password = *req.Body.Password
	}
	if req.Body.SSH != nil {
		create.SSH = *req.Body.SSH
	}
	w, err := writer.Create(ctx, create)
	if err != nil {
		return nil, err
	}
	return CreateWebspace201JSONResponse{WebspaceJSONResponse(newWebspace(w))}, nil
}

func (h handlers) DeleteWebspace(ctx context.Context, req DeleteWebspaceRequestObject) (DeleteWebspaceResponseObject, error) {
	return DeleteWebspace204Response{}, h.change(ctx, req.Username, access.Writer.Delete)
}

func (h handlers) GetConfig(ctx context.Context, req GetConfigRequestObject) (GetConfigResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	w, err := reader.Get(ctx)
	if err != nil {
		return nil, err
	}
	return GetConfig200JSONResponse{ConfigJSONResponse(newConfig(w.Config))}, nil
}

func (h handlers) UpdateConfig(ctx context.Context, req UpdateConfigRequestObject) (UpdateConfigResponseObject, error) {
	writer, err := h.gate.Write(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	change := webspace.ConfigChange{HTTPPort: req.Body.HTTPPort, SNIPassthrough: req.Body.SNIPassthrough}
	if req.Body.StartupDelay != nil {
		delay := seconds(*req.Body.StartupDelay)
		change.StartupDelay = &delay
	}
	old, err := writer.SetConfig(ctx, change)
	if err != nil {
		return nil, err
	}
	return UpdateConfig200JSONResponse{ConfigJSONResponse(newConfig(old))}, nil
}

func (h handlers) GetState(ctx context.Context, req GetStateRequestObject) (GetStateResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	s, err := reader.State(ctx)
	if err != nil {
		return nil, err
	}
	return GetState200JSONResponse(newState(s)), nil
}

func (h handlers) Start(ctx context.Context, req StartRequestObject) (StartResponseObject, error) {
	return Start204Response{}, h.change(ctx, req.Username, access.Writer.Start)
}

func (h handlers) Reboot(ctx context.Context, req RebootRequestObject) (RebootResponseObject, error) {
	return Reboot204Response{}, h.change(ctx, req.Username, access.Writer.Restart)
}

// Shutdown answers 404 for a webspace that does not run, as this API has always done.
func (h handlers) Shutdown(ctx context.Context, req ShutdownRequestObject) (ShutdownResponseObject, error) {
	err := h.change(ctx, req.Username, access.Writer.Stop)
	if errdefs.IsFailedPrecondition(err) {
		err = statusError{err, http.StatusNotFound}
	}
	return Shutdown204Response{}, err
}

func (h handlers) change(ctx context.Context, username string, do func(access.Writer, context.Context) error) error {
	writer, err := h.gate.Write(ctx, username)
	if err != nil {
		return err
	}
	return do(writer, ctx)
}

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
	out := Webspace{User: int64(w.User), Config: newConfig(w.Config), Domains: append([]string{}, w.Domains...), Ports: make(map[string]int, len(w.Ports))}
	for external, internal := range w.Ports {
		out.Ports[strconv.Itoa(external)] = internal
	}
	return out
}

func newState(s webspace.State) State {
	out := State{
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
