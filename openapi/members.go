package openapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/openapi/internal/access"
	"github.com/netsoc/webspaced/webspace"
)

// maxLog bounds what is returned of a console log, in bytes.
const maxLog = 1 << 20

func (h handlers) GetDomains(ctx context.Context, req GetDomainsRequestObject) (GetDomainsResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	domains, err := reader.Domains(ctx)
	if err != nil {
		return nil, err
	}
	return append(GetDomains200JSONResponse{}, domains...), nil
}

func (h handlers) AddDomain(ctx context.Context, req AddDomainRequestObject) (AddDomainResponseObject, error) {
	return AddDomain201Response{}, h.change(ctx, req.Username, func(w access.Writer, ctx context.Context) error {
		return full(w.AddDomain(ctx, req.Domain))
	})
}

func (h handlers) RemoveDomain(ctx context.Context, req RemoveDomainRequestObject) (RemoveDomainResponseObject, error) {
	return RemoveDomain204Response{}, h.change(ctx, req.Username, func(w access.Writer, ctx context.Context) error {
		return w.RemoveDomain(ctx, req.Domain)
	})
}

func (h handlers) GetPorts(ctx context.Context, req GetPortsRequestObject) (GetPortsResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	w, err := reader.Get(ctx)
	if err != nil {
		return nil, err
	}
	return GetPorts200JSONResponse(newPorts(w.Ports)), nil
}

func (h handlers) AddPort(ctx context.Context, req AddPortRequestObject) (AddPortResponseObject, error) {
	return AddPort201Response{}, h.change(ctx, req.Username, func(w access.Writer, ctx context.Context) error {
		_, err := w.AddPort(ctx, req.EPort, req.IPort)
		return full(err)
	})
}

func (h handlers) AddRandomPort(ctx context.Context, req AddRandomPortRequestObject) (AddRandomPortResponseObject, error) {
	writer, err := h.gate.Write(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	external, err := writer.AddPort(ctx, 0, req.Port)
	if err != nil {
		return nil, full(err)
	}
	return AddRandomPort201JSONResponse{EPort: external}, nil
}

func (h handlers) RemovePort(ctx context.Context, req RemovePortRequestObject) (RemovePortResponseObject, error) {
	return RemovePort204Response{}, h.change(ctx, req.Username, func(w access.Writer, ctx context.Context) error {
		return w.RemovePort(ctx, req.Port)
	})
}

// full answers 400 if a webspace has too many domains or ports, as this API has always done.
func full(err error) error {
	if errdefs.IsResourceExhausted(err) {
		return statusError{err, http.StatusBadRequest}
	}
	return err
}

func (h handlers) GetLog(ctx context.Context, req GetLogRequestObject) (GetLogResponseObject, error) {
	reader, err := h.gate.Read(ctx, req.Username)
	if err != nil {
		return nil, err
	}
	log, err := reader.Log(ctx, maxLog)
	if err != nil {
		return nil, err
	}
	return GetLog200TextResponse(log), nil
}

func (h handlers) ClearLog(ctx context.Context, req ClearLogRequestObject) (ClearLogResponseObject, error) {
	return ClearLog204Response{}, h.change(ctx, req.Username, access.Writer.ClearLog)
}

// Exec runs a command as a session: it is killed when its caller may no longer run it.
func (h handlers) Exec(ctx context.Context, req ExecRequestObject) (ExecResponseObject, error) {
	var result webspace.ShellResult
	err := h.sessions.command(ctx, req.Username, func(ctx context.Context, writer access.Writer) (err error) {
		result, err = writer.Shell(ctx, req.Body.Command)
		return err
	})
	if err != nil {
		return nil, err
	}
	return execAnswer{
		Stdout: text(result.Stdout), Stderr: text(result.Stderr), ExitCode: result.ExitCode,
		StdoutTruncated: &result.StdoutTruncated, StderrTruncated: &result.StderrTruncated,
	}, nil
}

// execAnswer is an ExecResult whose JSON is at most three times as long as what the command has printed.
type execAnswer ExecResult

// VisitExecResponse writes the answer. Escaped for HTML pages, which this is none of, a "<" would have six bytes.
func (a execAnswer) VisitExecResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(a)
}

// text is what a command has printed as JSON can hold it without growing: control characters would have six bytes each.
func text(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' {
			return utf8.RuneError
		}
		return r // what is not UTF-8 is RuneError already
	}, string(b))
}
