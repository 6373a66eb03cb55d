package openapi

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"

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
