package provider

import (
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// Certificate says where the reverse proxy finds the certificate of one host whose TLS it terminates. It is one of three:
// a Secret, a Resolver, or a Chain with its Key.
type Certificate struct {
	Host Host
	// Secret is the name of a Kubernetes Secret of type kubernetes.io/tls, beside the routes. It may not be there yet.
	Secret string
	// Resolver is what the reverse proxy calls something of its own that obtains certificates.
	Resolver string
	// Chain and Key are the certificate with its intermediates and the private key, in PEM.
	Chain string
	Key   PrivateKey
}

// PrivateKey is text that no log and no error shows. A conversion to string does.
type PrivateKey string

const hidden = "(private key)"

// String hides the key.
func (PrivateKey) String() string { return hidden }

// Format hides the key, whatever the verb.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText hides the key.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Validate reports what is wrong with c, as InvalidArgument.
func (c Certificate) Validate() error {
	invalid := func(why string) error {
		return fmt.Errorf("certificate of host %s: %s: %w", c.Host, why, errdefs.ErrInvalidArgument)
	}
	kinds := 0
	for _, set := range []bool{c.Secret != "", c.Resolver != "", c.Chain != "" || c.Key != ""} {
		if set {
			kinds++
		}
	}
	switch {
	case c.Host.name == "":
		return invalid("it has no host")
	case kinds != 1:
		return invalid("give a secret, or a resolver, or a chain and a key")
	case c.Secret != "" && !isSubdomain(c.Secret):
		return invalid("its secret's name is not one")
	case c.Resolver != "" && !isName(c.Resolver):
		return invalid("its resolver's name is not one: letters, digits, '-' and '_'")
	case (c.Chain == "") != (c.Key == ""):
		return invalid("chain and key belong together")
	case c.Chain != "" && (!isPEM(c.Chain) || !isPEM(string(c.Key))):
		return invalid("its chain or key is not PEM")
	}
	return nil
}

// isSubdomain reports whether s is what Kubernetes names most objects by (RFC 1123).
func isSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !IsLabel(label) {
			return false
		}
	}
	return true
}

func isName(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// isPEM looks at the characters alone: they have to survive each proxy's own syntax. Whether a key fits its chain is what
// whoever obtained them has checked.
func isPEM(s string) bool {
	return strings.HasPrefix(s, "-----BEGIN ") && len(s) <= 64<<10 &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=- \r\n") == ""
}
