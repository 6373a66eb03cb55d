package openapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/openapi"
)

var errUnreachable = fmt.Errorf("dial unix /var/lib/lxd/unix.socket: %w", errdefs.ErrUnavailable)

// failingAuth answers every token with an error, or with a panic.
type failingAuth struct{ err error }

func (f failingAuth) Authenticate(context.Context, string) (identity.User, error) {
	if f.err == nil {
		panic("out of order")
	}
	return identity.User{}, f.err
}

// TestClasses sends each class of error through the server and the client: it arrives as the same class.
func TestClasses(t *testing.T) {
	users, err := static.New(nil)
	require.NoError(t, err)
	for class, status := range map[error]int{
		errdefs.ErrInvalidArgument:    400,
		errdefs.ErrOutOfRange:         400,
		errdefs.ErrUnauthenticated:    401,
		errdefs.ErrPermissionDenied:   403,
		errdefs.ErrNotFound:           404,
		errdefs.ErrAlreadyExists:      409,
		errdefs.ErrConflict:           409,
		errdefs.ErrFailedPrecondition: 409,
		errdefs.ErrAborted:            409,
		errdefs.ErrResourceExhausted:  429,
		errdefs.ErrInternal:           500,
		errdefs.ErrDataLoss:           500,
		errdefs.ErrUnknown:            500,
		errdefs.ErrNotImplemented:     501,
		errdefs.ErrUnavailable:        503,
		context.Canceled:              503,
		context.DeadlineExceeded:      504,
	} {
		server := httptest.NewServer(openapi.NewServer(nil, failingAuth{fmt.Errorf("hunter2: %w", class)}, users, &openapi.Options{Logger: quiet}))
		c, err := openapi.Connect(server.URL, "token", nil)
		require.NoError(t, err)
		_, err = c.GetWebspaceWithResponse(t.Context(), "self")
		require.ErrorIs(t, err, class)
		var answer *openapi.Error
		require.ErrorAs(t, err, &answer)
		require.Equal(t, status, answer.Status)
		if status >= 500 {
			require.NotContains(t, err.Error(), "hunter2")
		}
		server.Close()
	}
}

// TestForeignAnswers is what the client makes of answers that this server never gave.
func TestForeignAnswers(t *testing.T) {
	for status, class := range map[int]error{
		400: errdefs.ErrInvalidArgument, 401: errdefs.ErrUnauthenticated, 403: errdefs.ErrPermissionDenied, 404: errdefs.ErrNotFound,
		405: errdefs.ErrInvalidArgument, 409: errdefs.ErrConflict, 413: errdefs.ErrInvalidArgument, 415: errdefs.ErrInvalidArgument,
		418: errdefs.ErrUnknown, 429: errdefs.ErrResourceExhausted, 500: errdefs.ErrInternal, 502: errdefs.ErrUnavailable,
		503: errdefs.ErrUnavailable, 504: context.DeadlineExceeded, 304: errdefs.ErrUnknown,
	} {
		for _, body := range []string{"", "<html>", `{"message":"from 2021"}`, `{"message":5}`, "null", `{"message":"x","code":"no such code"}`} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			}))
			c, err := openapi.Connect(server.URL, "", nil)
			require.NoError(t, err)
			_, err = c.GetHealthWithResponse(t.Context())
			require.ErrorIs(t, err, class, "%d %s", status, body)
			require.NotEmpty(t, err.Error())
			server.Close()
		}
	}
}

func TestPanic(t *testing.T) {
	users, err := static.New(nil)
	require.NoError(t, err)
	h := openapi.NewServer(nil, failingAuth{}, users, &openapi.Options{Logger: quiet})
	req := httptest.NewRequest("GET", "/v1/webspace/self", nil)
	req.Header.Set("Authorization", "Bearer x")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	require.Equal(t, 500, rec.Code)
	require.NotContains(t, rec.Body.String(), "out of order")
}
