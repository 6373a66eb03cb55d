package openapi

import (
	"context"
	"net/http"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

// handlers implement the operations of the document. They turn errors over to whoever calls them, by their class.
type handlers struct {
	gate     *access.Gate
	sessions *sessions
	images   *kept[[]webspace.Image]
	health   *kept[struct{}]
	leaving  *atomic.Bool // the daemon is about to end
}

var _ StrictServerInterface = handlers{}

func (h handlers) GetImages(ctx context.Context, _ GetImagesRequestObject) (GetImagesResponseObject, error) {
	images, err := h.images.get(ctx, h.gate.Images)
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
	return GetState200JSONResponse(newState(s, reader.Problem())), nil
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

func (h handlers) Sync(ctx context.Context, req SyncRequestObject) (SyncResponseObject, error) {
	return Sync204Response{}, h.change(ctx, req.Username, access.Writer.Sync)
}

func (h handlers) change(ctx context.Context, username string, do func(access.Writer, context.Context) error) error {
	writer, err := h.gate.Write(ctx, username)
	if err != nil {
		return err
	}
	return do(writer, ctx)
}
