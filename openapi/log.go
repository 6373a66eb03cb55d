package openapi

import (
	"bufio"
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/netsoc/webspaced/identity"
)

// call is what is learnt of a request while it is served, for the access log.
type call struct {
	id   string
	user identity.User
}

type callKey struct{}

func callOf(r *http.Request) *call {
	c, _ := r.Context().Value(callKey{}).(*call)
	if c == nil {
		c = new(call)
	}
	return c
}

// accessLog gives each request an ID and writes a line for it: who it came from only as a token has proven it, and
// neither token nor query. ended is told of each as well, by the pattern of the mux.
func accessLog(log *slog.Logger, mux *http.ServeMux, ended func(pattern string, status int, took time.Duration), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		c := &call{id: rand.Text()}
		w.Header().Set("X-Request-Id", c.id)
		recorder := &recorder{ResponseWriter: w}
		defer func() {
			level := slog.LevelInfo
			switch r.URL.Path {
			case "/health", "/livez", "/readyz", "/metrics":
				level = slog.LevelDebug // machines ask for these all day long
			}
			_, route := mux.Handler(r)
			took := time.Since(began)
			ended(route, recorder.status, took)
			attrs := []slog.Attr{
				slog.String("method", r.Method), slog.String("path", head(r.URL.Path, 256)), slog.String("route", route),
				slog.Int("status", recorder.status), slog.Int64("bytes", recorder.bytes), slog.Duration("took", took),
				slog.String("remote", r.RemoteAddr), slog.String("request_id", c.id),
			}
			if c.user.ID > 0 {
				attrs = append(attrs, slog.Int64("user", int64(c.user.ID)), slog.String("username", head(c.user.Username, 64)))
			}
			if id := r.Header.Get("X-Request-Id"); sane(id) {
				attrs = append(attrs, slog.String("client_request_id", id))
			}
			log.LogAttrs(r.Context(), level, "request", attrs...)
		}()
		next.ServeHTTP(recorder, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	})
}

// sane reports whether what a client calls its request can go into a log.
func sane(id string) bool {
	return id != "" && len(id) <= 64 && strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_.:") == ""
}

func head(s string, n int) string { return s[:min(len(s), n)] }

// recorder is a ResponseWriter that remembers what it was told.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets an [http.ResponseController] through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack is for those who take connections over without a controller.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil {
		r.status = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}
