package openapi

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// Whatever a client sends is either within bounds or refused with a reason.
func FuzzTerminalMessages(f *testing.F) {
	for _, seed := range []string{
		`{"command":["vi","notes"],"user":0,"group":0,"environment":{"TERM":"xterm"},"width":80,"height":24,"workingDirectory":"/root"}`,
		`{"resize":{"width":120,"height":40}}`, `{"signal":15}`, `{"width":80,"height":24}`, `{}`, `[]`, `null`, `{"signal":null}`,
		`{"resize":null,"signal":9}`, `{"width":1e9,"height":-1}`, `{"command":[null]}`, `{"environment":{"=":"\u0000"}}`, "\xff", "",
		`{"user":4294967295}`, `{"size":{"width":1}}`, `{"signal":9}{"signal":9}`, strings.Repeat("[", 20000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		refused := func(err error) bool {
			if err == nil {
				return false
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("of another class: %v", err)
			}
			_, reason := closeCode(err)
			if reason = shorten(reason); reason == "" || len(reason) > maxReason || !utf8.ValidString(reason) {
				t.Fatalf("reason %q", reason)
			}
			return true
		}
		bounded := func(width, height int) {
			if width < 1 || width > maxTerminalSize || height < 1 || height > maxTerminalSize {
				t.Fatalf("size %d, %d", width, height)
			}
		}
		if opts, err := decodeExec(data); !refused(err) {
			bounded(opts.Terminal.Width, opts.Terminal.Height)
			if len(opts.Command) == 0 || opts.Command[0] == "" || opts.Env["TERM"] == "" && !strings.Contains(string(data), "TERM") {
				t.Fatalf("%+v", opts)
			}
		}
		if size, err := decodeConsole(data); !refused(err) {
			bounded(size.Width, size.Height)
		}
		for _, decode := range []func([]byte) (change, error){decodeExecChange, decodeConsoleChange} {
			c, err := decode(data)
			switch {
			case refused(err):
			case c.resize != nil:
				bounded(c.resize.Width, c.resize.Height)
			case c.signal < 1 || c.signal > maxSignal:
				t.Fatalf("signal %d", c.signal)
			}
		}
	})
}
