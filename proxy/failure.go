package proxy

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

//go:embed failure.html
var failureHTML string

var failurePage = template.Must(template.New("failure").Parse(failureHTML))

// answer is what a client is told when its request can not be proxied.
type answer struct {
	Status     int
	Title      string
	Reason     string
	RetryAfter time.Duration
}

// The answers that are not about a target.
var (
	answerHost        = answer{Status: http.StatusBadRequest, Title: "Bad request", Reason: "The request does not say which site it is for."}
	answerRequest     = answer{Status: http.StatusBadRequest, Title: "Bad request", Reason: "The request makes no sense here."}
	answerMethod      = answer{Status: http.StatusMethodNotAllowed, Title: "Method not allowed", Reason: "This method is not served here."}
	answerMisdirected = answer{Status: http.StatusMisdirectedRequest, Title: "Misdirected request", Reason: "The connection is for another site than the request."}
	answerUnread      = answer{Status: http.StatusRequestTimeout, Title: "Request timeout", Reason: "The request stopped half-way."}
	// Every name that nobody has gets the same answer, byte for byte, and so does a webspace that is just gone: who
	// asks for names learns nothing from it.
	answerUnknown = answer{Status: http.StatusNotFound, Title: "There is no site here", Reason: "This address does not belong to any site. Is it spelled correctly?"}
)

// FailureStatuses are those in [GatewayStats].Failures: of the answers that a gateway itself gives.
func FailureStatuses() []int {
	return []int{
		http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestTimeout,
		http.StatusMisdirectedRequest, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}
}

// answerTo says what a client is told of an error: the class makes the status, and a [Failure] the words. Nothing else of
// the error is shown.
func answerTo(err error, t Target) answer {
	var a answer
	switch {
	case errdefs.IsNotFound(err):
		return answerUnknown
	case errdefs.IsResourceExhausted(err):
		a = answer{http.StatusServiceUnavailable, "Too busy", "Too much is going on at the moment.", 5 * time.Second}
	case errdefs.IsUnavailable(err):
		a = answer{http.StatusServiceUnavailable, "This site is unavailable", "The webspace could not be started.", 0}
	case errdefs.IsFailedPrecondition(err):
		a = answer{http.StatusBadGateway, "This site does not answer",
			fmt.Sprintf("The webspace runs, but nothing listens on port %d.", t.Port), 0}
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		a = answer{http.StatusGatewayTimeout, "This site takes too long", "The webspace did not answer in time.", 0}
	default:
		a = answer{http.StatusBadGateway, "This site does not answer", "The webspace did not answer as a web server should.", 0}
	}
	if failure, ok := errors.AsType[*Failure](err); ok {
		a.Reason = failure.Reason
		if failure.RetryAfter > 0 {
			a.RetryAfter = failure.RetryAfter
		}
	}
	return a
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

func (a answer) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	clear(h)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if a.Status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	if a.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.RetryAfter.Seconds()))))
	}
	var page bytes.Buffer
	if prefersHTML(r.Header) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'")
		_ = failurePage.Execute(&page, map[string]any{"Status": a.Status, "StatusText": http.StatusText(a.Status),
			"Title": a.Title, "Reason": a.Reason})
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(&page, strings.Join(strings.Fields(a.Reason), " "))
	}
	h.Set("Content-Length", strconv.Itoa(page.Len()))
	w.WriteHeader(a.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(page.Bytes())
	}
}

// prefersHTML tells whether a client names HTML and likes it no less than plain text. Browsers do; programs that take
// anything ("*/*") are better off with one line of text.
func prefersHTML(h http.Header) bool {
	html, text := 0.0, 0.0
	for _, line := range h["Accept"] {
		for media := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(media, ";")
			quality := 1.0
			for param := range strings.SplitSeq(params, ";") {
				if q, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(param)), "q="); ok {
					quality, _ = strconv.ParseFloat(q, 64)
				}
			}
			switch strings.ToLower(strings.TrimSpace(media)) {
			case "text/html", "application/xhtml+xml":
				html = max(html, quality)
			case "text/plain":
				text = max(text, quality)
			}
		}
	}
	return html > 0 && html >= text
}
