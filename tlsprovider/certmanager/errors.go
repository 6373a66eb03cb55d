package certmanager

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// isAbsent reports whether an object is not there, though its kind is: the API server answers with a status of its own.
func isAbsent(err error) bool { return apierrors.IsNotFound(err) && !isUnknownKind(err) }

// isUnknownKind reports whether the API server knows nothing by such a path.
func isUnknownKind(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// classed gives an error of the API server its class. ctx is the caller's.
func classed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var class error = errdefs.ErrUnavailable
	switch {
	case errdefs.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w", what, err)
	case isUnknownKind(err):
		return fmt.Errorf("%s: the API server has no %s, is cert-manager installed? %w", what, certificates.GroupResource(), class)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		class = errdefs.ErrPermissionDenied
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		class = errdefs.ErrInvalidArgument
	}
	return fmt.Errorf("%s: %w: %w", what, class, err)
}
