package openapi

import (
	"compress/gzip"
	_ "embed" // for the page
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/swaggest/swgui/v5/static"
)

//go:embed swagger.html
var swaggerPage []byte

//go:embed swagger.js
var swaggerScript []byte

// pagePolicy lets the documentation's page load what is embedded here and ask this server, and nothing else. Swagger UI sets
// style attributes.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

// addPages serves the document, and the page to read and try it with.
func addPages(mux *http.ServeMux) {
	page := func(pattern, kind string, body []byte) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			h := w.Header()
			h.Set("Content-Type", kind)
			h.Set("Content-Security-Policy", pagePolicy)
			_, _ = w.Write(body)
		})
	}
	page("GET /static/api.yaml", "application/yaml", document)
	page("GET /swagger", "text/html; charset=utf-8", swaggerPage)
	page("GET /swagger/page.js", "text/javascript; charset=utf-8", swaggerScript)
	for _, name := range []string{"swagger-ui-bundle.js", "swagger-ui.css"} {
		mux.Handle("GET /swagger/"+name, asset(name+".gz"))
	}
	mux.Handle("GET /swagger/favicon-32x32.png", asset("favicon-32x32.png"))
}

// asset serves a file of Swagger UI, which is embedded compressed if its name ends in ".gz".
func asset(name string) http.Handler {
	plain, compressed := strings.CutSuffix(name, ".gz")
	kind := mime.TypeByExtension(path.Ext(plain))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, err := static.FS.Open(name)
		if err != nil {
			panic(err) // it is embedded
		}
		defer file.Close()
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Cache-Control", "public, max-age=3600")
		h.Set("Vary", "Accept-Encoding")
		var body io.Reader = file
		switch {
		case compressed && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip"):
			h.Set("Content-Encoding", "gzip")
		case compressed:
			if body, err = gzip.NewReader(file); err != nil {
				panic(err) // likewise
			}
		}
		_, _ = io.Copy(w, body)
	})
}
