package acme

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mholt/acmez/v3/acme"
)

// explain says for the owner of a host why there is no certificate.
func explain(err error, host string) string {
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok {
		return fmt.Sprintf("no certificate could be obtained: %v", err)
	}
	detail := problem.Detail
	for _, sub := range problem.Subproblems {
		detail += "; " + sub.Detail
	}
	var words string
	switch problem.Type {
	case acme.ProblemTypeDNS:
		words = fmt.Sprintf("the certificate authority can not look up %s in DNS", host)
	case acme.ProblemTypeConnection, acme.ProblemTypeTLS:
		words = fmt.Sprintf("the certificate authority can not connect to %s: its DNS records have to point here, A and AAAA", host)
	case acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
		words = fmt.Sprintf("somebody else has answered for %s: its DNS records have to point here, A and AAAA", host)
	case acme.ProblemTypeCAA:
		words = fmt.Sprintf("a CAA record of %s forbids this certificate authority", host)
	case acme.ProblemTypeRateLimited:
		words = "the certificate authority has set a limit that is reached"
	case acme.ProblemTypeRejectedIdentifier:
		words = fmt.Sprintf("the certificate authority gives no certificates to %s", host)
	default:
		words = "the certificate authority has refused"
	}
	return fmt.Sprintf("%s (it says: %s)", words, detail)
}

// oneLine makes text from outside fit to be shown: no control characters, bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	const most = 800
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
