package openapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/webspace"
)

// Bounds of what the client of a terminal says.
const (
	maxTerminalMessage = 64 << 10 // bytes
	maxTerminalSize    = 4096     // characters
	maxSignal          = 64
)

// defaultSize is that of a terminal whose client does not say.
var defaultSize = webspace.TerminalSize{Width: 80, Height: 24}

// size is one of a terminal, as clients say it.
type size struct {
	Width  int `json:"width"`
	Height int `json:"height"`
}

func (s size) check() (webspace.TerminalSize, error) {
	for _, side := range []struct {
		name   string
		length int
	}{{"width", s.Width}, {"height", s.Height}} {
		if side.length < 1 || side.length > maxTerminalSize {
			return webspace.TerminalSize{}, unacceptable("%s: %d is not from 1 to %d", side.name, side.length, maxTerminalSize)
		}
	}
	return webspace.TerminalSize{Width: s.Width, Height: s.Height}, nil
}

// orDefault is check for a first message, in which 0 stands for a side that the client does not know.
func (s size) orDefault() (webspace.TerminalSize, error) {
	if s.Width == 0 {
		s.Width = defaultSize.Width
	}
	if s.Height == 0 {
		s.Height = defaultSize.Height
	}
	return s.check()
}

func unacceptable(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// decodeMessage decodes a text message, strictly: what is misspelt would be ignored otherwise.
func decodeMessage(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return unacceptable("%s: this value has no place here", e.Field)
	}
	if err != nil && strings.Contains(err.Error(), "unknown field") {
		return unacceptable("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, more := decoder.Token(); err != nil || more != io.EOF {
		return unacceptable("this text message is not a JSON object")
	}
	return nil
}

// decodeExec decodes the first message of an interactive command.
func decodeExec(data []byte) (webspace.ExecOptions, error) {
	var m struct {
		size
		Command          []string          `json:"command"`
		User             uint32            `json:"user"`
		Group            uint32            `json:"group"`
		Environment      map[string]string `json:"environment"`
		WorkingDirectory string            `json:"workingDirectory"`
	}
	if err := decodeMessage(data, &m); err != nil {
		return webspace.ExecOptions{}, err
	}
	switch {
	case len(m.Command) == 0 || m.Command[0] == "":
		return webspace.ExecOptions{}, unacceptable("command: it is empty")
	case strings.ContainsRune(strings.Join(m.Command, ""), 0):
		return webspace.ExecOptions{}, unacceptable("command: it has a NUL in it")
	case m.WorkingDirectory != "" && m.WorkingDirectory[0] != '/', strings.ContainsRune(m.WorkingDirectory, 0):
		return webspace.ExecOptions{}, unacceptable("workingDirectory: it is not an absolute path")
	}
	env := map[string]string{"TERM": "xterm"}
	for name, value := range m.Environment {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return webspace.ExecOptions{}, unacceptable("environment: %.64q can not be a variable, or not have this value", name)
		}
		env[name] = value
	}
	size, err := m.orDefault()
	if err != nil {
		return webspace.ExecOptions{}, err
	}
	return webspace.ExecOptions{
		Command: m.Command, User: m.User, Group: m.Group, Env: env, Dir: m.WorkingDirectory,
		Terminal: &webspace.Terminal{Width: size.Width, Height: size.Height},
	}, nil
}

// decodeConsole decodes the first message for a console.
func decodeConsole(data []byte) (webspace.TerminalSize, error) {
	var s size
	if err := decodeMessage(data, &s); err != nil {
		return webspace.TerminalSize{}, err
	}
	return s.orDefault()
}

// change is what a further text message tells: one of the two.
type change struct {
	resize *webspace.TerminalSize
	signal int
}

// decodeExecChange decodes a further message for an interactive command.
func decodeExecChange(data []byte) (change, error) {
	var m struct {
		Resize *size `json:"resize"`
		Signal *int  `json:"signal"`
	}
	if err := decodeMessage(data, &m); err != nil {
		return change{}, err
	}
	switch {
	case (m.Resize == nil) == (m.Signal == nil):
		return change{}, unacceptable("this text message has not one of resize and signal")
	case m.Resize != nil:
		size, err := m.Resize.check()
		return change{resize: &size}, err
	case *m.Signal < 1 || *m.Signal > maxSignal:
		return change{}, unacceptable("signal: %d is not from 1 to %d", *m.Signal, maxSignal)
	}
	return change{signal: *m.Signal}, nil
}

// decodeConsoleChange decodes a further message for a console.
func decodeConsoleChange(data []byte) (change, error) {
	var s size
	if err := decodeMessage(data, &s); err != nil {
		return change{}, err
	}
	size, err := s.check()
	return change{resize: &size}, err
}
