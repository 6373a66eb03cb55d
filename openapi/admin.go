package openapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/webspace"
)

// defaultPage is how many webspaces a page has that is not told otherwise.
const defaultPage = 100

func (h handlers) ListWebspaces(ctx context.Context, req ListWebspacesRequestObject) (ListWebspacesResponseObject, error) {
	all, err := h.gate.List(ctx)
	if err != nil {
		return nil, err
	}
	limit := defaultPage
	if req.Params.Limit != nil {
		limit = *req.Params.Limit
	}
	if req.Params.Cursor != nil {
		after, err := strconv.ParseInt(*req.Params.Cursor, 10, 64)
		if err != nil {
			return nil, err // the document lets nothing else than digits through
		}
		i, found := slices.BinarySearchFunc(all, identity.UserID(after), func(s webspace.Summary, id identity.UserID) int { return cmp.Compare(s.User, id) })
		if found {
			i++
		}
		all = all[i:]
	}
	page := ListWebspaces200JSONResponse{Webspaces: []WebspaceSummary{}}
	if len(all) > limit {
		all = all[:limit]
		page.Next = optional(all[limit-1].User.String())
	}
	for _, s := range all {
		page.Webspaces = append(page.Webspaces, newSummary(s))
	}
	return page, nil
}

func (h handlers) EnsureStarted(ctx context.Context, req EnsureStartedRequestObject) (EnsureStartedResponseObject, error) {
	address, err := h.gate.EnsureStarted(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	return EnsureStarted200TextResponse(address.Addr().String()), nil
}

// healthTimeout is shorter than those who ask for the server's health wait.
const healthTimeout = 2 * time.Second

func (h handlers) GetHealth(ctx context.Context, _ GetHealthRequestObject) (GetHealthResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if _, err := h.health.get(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, h.gate.Healthy(ctx) }); err != nil {
		return nil, statusError{err, http.StatusInternalServerError}
	}
	return GetHealth204Response{}, nil
}

func (h handlers) GetLivez(context.Context, GetLivezRequestObject) (GetLivezResponseObject, error) {
	return GetLivez204Response{}, nil
}

func (h handlers) GetReadyz(context.Context, GetReadyzRequestObject) (GetReadyzResponseObject, error) {
	if h.leaving.Load() {
		return nil, fmt.Errorf("the daemon is about to end: %w", errdefs.ErrUnavailable)
	}
	return GetReadyz204Response{}, h.gate.Ready()
}
