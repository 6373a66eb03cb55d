package provider

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Host is a host name in canonical form: lower-case LDH labels, at least two, at most 253 bytes, no trailing dot, no
// wildcard, not an address. Only [ParseHost] makes one, so that whatever builds a proxy's rule from a Host can not be
// handed anything with another meaning (a backtick, a template, a second spelling of a neighbour's name).
type Host struct{ name string }

// ParseHost returns the canonical form of s. Upper case and one trailing dot are accepted and removed, as DNS treats
// such names as equal. Names in Unicode are refused: give their A-labels (RFC 5890). Errors are InvalidArgument and say
// what is wrong.
func ParseHost(s string) (Host, error) {
	name := strings.TrimSuffix(s, ".")
	if len(name) == 0 || len(name) > 253 {
		return Host{}, hostError(s, "a host name has 1 to 253 characters")
	}
	name = lowerASCII(name)
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return Host{}, hostError(s, "a host name has at least two labels")
	}
	for _, label := range labels {
		if !IsLabel(label) {
			return Host{}, hostError(s, fmt.Sprintf("%.64q is not a DNS label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end", label))
		}
	}
	if isNumber(labels[len(labels)-1]) {
		return Host{}, hostError(s, "the last label is a number, as in an address")
	}
	return Host{name}, nil
}

// String is the canonical name.
func (h Host) String() string { return h.name }

// Compare orders hosts by name.
func (h Host) Compare(other Host) int { return strings.Compare(h.name, other.name) }

// Within reports whether h is zone (in canonical form) or a name below it.
func (h Host) Within(zone string) bool {
	return h.name == zone || strings.HasSuffix(h.name, "."+zone)
}

// IsLabel reports whether s is a lower-case LDH label: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end.
func IsLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// lowerASCII lowers A to Z only: strings.ToLower maps some letters beyond ASCII to ASCII ones (the Kelvin sign to k),
// which would give two different names one canonical form.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, s)
}

// isNumber reports whether label is a decimal, octal or hexadecimal number. Names that end in one are not host names
// (RFC 1123 section 2.1): browsers and C libraries read 127.1, 0177.0.0.1 and 127.0.0.0x1 as IPv4 addresses.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

func hostError(s, why string) error {
	return fmt.Errorf("host name %.300q: %s: %w", s, why, errdefs.ErrInvalidArgument)
}
