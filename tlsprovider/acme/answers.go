package acme

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/netsoc/webspaced/provider"
)

// answers are those to challenges that are under way: one a host at most.
type answers struct {
	mu    sync.RWMutex
	hosts map[provider.Host]answer
}

type answer struct {
	token, text string           // HTTP-01
	certificate *tls.Certificate // TLS-ALPN-01
}

func newAnswers() *answers { return &answers{hosts: map[provider.Host]answer{}} }

// give has a challenge answered until the function that it returns is called.
func (a *answers) give(name provider.Host, challenge acme.Challenge) (end func(), err error) {
	var given answer
	switch Challenge(challenge.Type) {
	case HTTP01:
		given = answer{token: challenge.Token, text: challenge.KeyAuthorization}
	case TLSALPN01:
		if given.certificate, err = acmez.TLSALPN01ChallengeCert(challenge); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hosts[name] = given
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.hosts, name)
	}, nil
}

func (a *answers) get(name provider.Host) answer {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.hosts[name]
}

func (a *answers) certificate(name provider.Host) *tls.Certificate { return a.get(name).certificate }

func (a *answers) handle(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	token, ok := strings.CutPrefix(r.URL.Path, "/.well-known/acme-challenge/")
	if !ok || token == "" {
		return false
	}
	name, err := provider.ParseHost((&url.URL{Host: r.Host}).Hostname())
	if err != nil {
		return false
	}
	given := a.get(name)
	if given.token == "" || given.token != token {
		return false
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, given.text)
	return true
}
