package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/netsoc/webspaced/provider"
)

// hidden is what is shown of a secret.
const hidden = "(hidden)"

// Secret is a value that hides itself wherever it is printed: by fmt with any verb, log/slog, JSON and YAML. The zero
// value is no secret at all.
//
// The value stands behind a pointer because fmt, which may not call methods on an unexported field of a struct, prints
// what such a field holds: for a pointer that is an address.
type Secret struct{ value *string }

// NewSecret hides value.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// Reveal returns the value. Hand it straight to what needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.value == nil }

// String is empty if there is no secret, and else says that there is one.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return hidden
}

// Format implements [fmt.Formatter] for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON implements [json.Marshaler].
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText implements [encoding.TextMarshaler], which YAML and most other formats use.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes the value, and refuses what [Secret.String] prints: a configuration that was shown is not one
// that can be loaded.
func (s *Secret) UnmarshalText(text []byte) error {
	if string(text) == hidden {
		return errors.New("this is what stands for a hidden secret, not the secret")
	}
	*s = NewSecret(string(text))
	return nil
}

// Level is the least level that is logged. It implements [slog.Leveler].
type Level slog.Level

// levels has the names of log/slog and, beside them, those of other loggers that configuration files use.
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
}

// Level implements [slog.Leveler].
func (l Level) Level() slog.Level { return slog.Level(l) }

// MarshalText writes the name that UnmarshalText reads.
func (l Level) MarshalText() ([]byte, error) {
	for _, name := range []string{"trace", "debug", "info", "warn", "error"} {
		if levels[name] == slog.Level(l) {
			return []byte(name), nil
		}
	}
	return nil, fmt.Errorf("no name for log level %d", l)
}

// UnmarshalText reads a name, in any case.
func (l *Level) UnmarshalText(text []byte) error {
	level, ok := levels[strings.ToLower(string(text))]
	if !ok {
		return errors.New("a level is trace, debug, info, warn or error")
	}
	*l = Level(level)
	return nil
}

// URL is an absolute URL with scheme http or https and a host, without credentials. The zero value is none.
type URL struct{ url.URL }

// IsZero reports whether there is no URL.
func (u URL) IsZero() bool { return u.Host == "" }

// Origin is the scheme, host and port, which is written even if it is the scheme's own: "http://webspaced:80".
func (u URL) Origin() string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(u.Hostname(), port)
}

// MarshalText writes the URL.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads a URL. Its errors do not repeat it: what is wrong may be that it has a password in it.
func (u *URL) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*u = URL{}
		return nil
	}
	parsed, err := url.Parse(string(text))
	switch {
	case err != nil:
		return errors.New("not a URL")
	case parsed.Scheme != "http" && parsed.Scheme != "https":
		return errors.New("a URL begins with http:// or https://")
	case parsed.User != nil:
		return errors.New("a URL here has no user or password in it")
	case parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "":
		return errors.New("a URL here has no query and no fragment")
	case !isHost(parsed.Hostname()) || !isPort(parsed.Port(), true):
		return errors.New("the URL has no valid host and port")
	}
	*u = URL{*parsed}
	return nil
}

// Address is where something listens: "HOST:PORT", or ":PORT" for every address. Empty is nowhere.
type Address string

func (a Address) loopback() bool {
	host, _, err := net.SplitHostPort(string(a))
	ip, parseErr := netip.ParseAddr(host)
	return err == nil && (host == "localhost" || parseErr == nil && ip.IsLoopback())
}

// UnmarshalText reads an address.
func (a *Address) UnmarshalText(text []byte) error {
	if len(text) > 0 {
		host, port, err := net.SplitHostPort(string(text))
		if err != nil || host != "" && !isHost(host) || !isPort(port, false) {
			return errors.New("where to listen is ADDRESS:PORT or :PORT")
		}
	}
	*a = Address(text)
	return nil
}

// Domain is a DNS name in canonical form: lower case, no trailing dot. One label, such as localhost, is enough.
type Domain string

// UnmarshalText reads a domain. Upper case and one trailing dot are accepted and removed.
func (d *Domain) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = ""
		return nil
	}
	// A second label lets one label pass as a host name; it is taken off again.
	const second = ".invalid"
	name := strings.TrimSuffix(string(text), ".")
	if strings.Contains(name, ".") {
		host, err := provider.ParseHost(name)
		if err != nil {
			return errDomain
		}
		*d = Domain(host.String())
		return nil
	}
	host, err := provider.ParseHost(name + second)
	if err != nil || strings.Trim(name, "0123456789") == "" {
		return errDomain
	}
	*d = Domain(strings.TrimSuffix(host.String(), second))
	return nil
}

var errDomain = errors.New("not a DNS name: labels of a-z, 0-9 and '-', separated by dots")

// Origin is a web origin, "https://HOST" with a port if it is unusual, or "*" for all.
type Origin string

// UnmarshalText reads an origin.
func (o *Origin) UnmarshalText(text []byte) error {
	if string(text) != "*" {
		var u URL
		if err := u.UnmarshalText(text); err != nil || u.IsZero() || u.Scheme+"://"+u.Host != string(text) || u.Host != strings.ToLower(u.Host) {
			return errors.New("an origin is http(s)://HOST or http(s)://HOST:PORT in lower case, or \"*\"")
		}
	}
	*o = Origin(text)
	return nil
}

// isHost reports whether s is an address or a DNS name.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	var d Domain
	return s != "" && d.UnmarshalText([]byte(s)) == nil
}

func isPort(s string, optional bool) bool {
	if s == "" {
		return optional
	}
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}
