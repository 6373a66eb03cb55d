package openapi

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "h\u00e9llo\t\r\n": "h\u00e9llo\t\r\n", "a\x00b\x1b[1m": "a\ufffdb\ufffd[1m", "\xff\xfe": "\ufffd\ufffd", "<&>": "<&>",
	} {
		require.Equal(t, want, text([]byte(in)), "%q", in)
	}
	for _, worst := range []string{"\x00", "\xff", "<", "\"", "\u2028", "\x7f"} {
		b := bytes.Repeat([]byte(worst), 1000)
		rec := httptest.NewRecorder()
		require.NoError(t, execAnswer{Stdout: text(b), Stderr: strings.Repeat(" ", 10)}.VisitExecResponse(rec))
		require.LessOrEqual(t, rec.Body.Len(), 3*len(b)+100, "%q", worst)
	}
}

// A message is for people: it does not end in the name of the error's class.
func TestMessageWithoutClass(t *testing.T) {
	for want, err := range map[string]error{
		"user 1 has no webspace":             fmt.Errorf("user 1 has no webspace: %w", errdefs.ErrNotFound),
		"image: give one":                    fmt.Errorf("image: give one: %w", errdefs.ErrInvalidArgument),
		"not found: x":                       fmt.Errorf("not found: x: %w", errdefs.ErrNotFound),
		"something went wrong in the server": fmt.Errorf("secret detail: %w", errdefs.ErrInternal),
	} {
		require.Equal(t, want, newProblem(err).Message)
	}
}
