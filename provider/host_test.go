package provider_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/provider"
)

var (
	label63 = strings.Repeat("a", 63)
	name253 = strings.Join([]string{label63, label63, label63, label63[:61]}, ".")
)

// accepted spellings and the name that each of them is.
var accepted = map[string]string{
	"bob.example.org": "bob.example.org", "BOB.EXAMPLE.ORG": "bob.example.org", "Bob.Example.Org": "bob.example.org",
	"bob.example.org.": "bob.example.org", "BOB.example.ORG.": "bob.example.org", "bOb.eXaMpLe.oRg": "bob.example.org",
	"a.b": "a.b", "a.b.": "a.b", "0.a": "0.a", "1.2.3.a": "1.2.3.a", "127.0.0.1.example": "127.0.0.1.example",
	"a.b.c.d.e.f.g.h": "a.b.c.d.e.f.g.h", "a-b.c-d": "a-b.c-d", "a--b.c": "a--b.c", "1-2.a": "1-2.a",
	"xn--bcher-kva.example": "xn--bcher-kva.example", "XN--BCHER-KVA.example": "xn--bcher-kva.example",
	"xn--80ak6aa92e.com": "xn--80ak6aa92e.com", "example.xn--p1ai": "example.xn--p1ai",
	"localhost.localdomain": "localhost.localdomain", "alice.localhost": "alice.localhost",
	label63 + ".org": label63 + ".org", strings.ToUpper(label63) + ".org": label63 + ".org",
	name253: name253, name253 + ".": name253, strings.ToUpper(name253): name253,
	"a.0xg": "a.0xg", "a.x0": "a.x0", "a.1a": "a.1a", "a.a1": "a.a1", "a.1-1": "a.1-1", "a.1e3": "a.1e3",
	"0x7f.example": "0x7f.example", "0177.example": "0177.example", "www.0x7f.0177.1.com": "www.0x7f.0177.1.com",
	"true.false": "true.false", "null.no": "null.no", "y.n": "y.n", "con.nul": "con.nul", "host.host": "host.host",
}

// refused spellings. Some are names to other programs, and these are the reason that they are refused here.
var refused = []string{
	// too short, too few labels
	"", ".", "..", "a", "a.", "bob", "localhost", "LOCALHOST", "xn--bcher-kva", "0", "-", "*",
	// empty labels
	".example.org", "bob..example.org", "bob.example.org..", "..bob.example.org", "bob...org", ".bob.example.org.", "a..",
	// too long
	"b" + name253, name253 + "a", "b" + name253 + ".", label63 + "a.org", "org." + label63 + "a", strings.Repeat("a.", 127) + "a",
	strings.Repeat("a", 254), strings.Repeat("a", 1<<16), strings.Repeat("a.", 1<<16), strings.Repeat(".", 300),
	// hyphens at the ends
	"-bob.example.org", "bob-.example.org", "bob.-example.org", "bob.example-.org", "bob.example.-org", "bob.example.org-",
	"-.org", "--.org", "bob.-", "bob.--",
	// wildcards and patterns
	"*.example.org", "bob.*.org", "bob.example.*", "*bob.example.org", "b*b.example.org", "*.*", "**.example.org",
	"{sub}.example.org", "{sub:[a-z]+}.example.org", "b?b.example.org", "b[o]b.example.org", "bob.example.org|x.org",
	"^bob.example.org$", ".+", "(bob).example.org", "bob.example.org+", "~bob.example.org",
	// a proxy's rule, template or configuration
	"bob.example.org`", "`bob.example.org`", "x.test`) || HostRegexp(`.*", "x.test`) || PathPrefix(`/", "x.test`,`bob.example.org",
	"x.test\") || Host(\"bob.example.org", "Host(`bob.example.org`)", "{{ env `SECRET` }}.org", "{{.}}.example.org", "bob.{{x}}.org",
	"${HOME}.example.org", "$(id).example.org", "%h.example.org", "bob.example.org{{", "}}.example.org", "{bob}.example.org",
	"bob.example.org: x", "- bob.example.org", "!!str.example.org", "&a.example.org", "*a.example.org", "#.example.org",
	"bob.example.org #", "\"bob.example.org\"", "'bob.example.org'", "[bob.example.org]", "bob.example.org]",
	"bob.example.org,eve.org", "bob.example.org;eve.org", "bob.example.org|eve.org", "bob.example.org&eve.org",
	"bob=example.org", "<bob>.example.org", "bob.example.org\\", "bob\\.example.org", "\\bob.example.org",
	// white space and control characters
	" bob.example.org", "bob.example.org ", "bob .example.org", "bob. example.org", "bob.example.org\n", "\nbob.example.org",
	"bob\n.example.org", "bob.example.org\r\n", "bob.example.org\r\nX-Header: 1", "bob\t.example.org", "\tbob.example.org",
	"bob.example.org\x00", "bob\x00.example.org", "\x00", "bob.example.org\x7f", "bob\x1b.example.org", "bob\v.example.org",
	"bob\u00a0.example.org", "bob.example.org\u2028", "bob\u3000.example.org", "\ufeffbob.example.org", "bob\u0085.example.org",
	// what cannot be seen
	"bob\u200b.example.org", "bob\u200d.example.org", "bob\u200c.example.org", "bob\u00ad.example.org", "bob\u2060.example.org",
	"\u202ebob.example.org", "bob.example.org\u200e", "bob\ufe0f.example.org", "bob\u034f.example.org",
	// names in Unicode, among them letters that some functions turn into ASCII ones
	"bücher.example", "bob.exämple.org", "bob.example.рф", "ьоь.example.org", "bоb.example.org", "例え.example", "bob.example。org",
	"bob．example.org", "bob｡example.org", "ｂｏｂ.example.org", "ＢＯＢ.example.org", "\u212aob.example.org", "\u212a.org",
	"ma\u017fk.example.org", "\u017f.org", "\u0130.org", "\u0131.org", "stra\u00dfe.example", "e\u0301.example", "\u2460.org",
	"\u1d2c.org", "\u24b7ob.example.org", "bob.example.\U0001d428\U0001d42b\U0001d420", "bob.example.ⅽom", "😀.example.org", "\u00aa.org",
	// bytes that are no text
	"\xff.example.org", "bob\xc0\xae.example.org", "bob.example\xc0\xaeorg", "\xed\xa0\x80.org", "bob.example.org\xe2\x84", "b\x80b.org",
	// escapes
	"bob%2eexample.org", "bob%2Eexample%2Eorg", "%62ob.example.org", "bob.example.org%00", "bob&#46;example.org", "bob\\046example.org",
	// more, or something else, than a name
	"bob.example.org:80", "bob.example.org:", "http://bob.example.org", "https://bob.example.org/", "//bob.example.org", "bob.example.org/",
	"bob.example.org/path", "bob.example.org?q", "bob.example.org#f", "user@bob.example.org", "@bob.example.org", "bob@example.org",
	"../bob.example.org", "bob.example.org/..", "./bob.example.org", "file:bob.example.org", "_acme-challenge.example.org", "b_b.example.org",
	"_.example.org", "bob.example.org~", "bob!.example.org", "b+b.example.org", "b'b.example.org", "b\"b.example.org", "b^b.example.org",
	// addresses, in all the forms that somebody reads as one
	"127.0.0.1", "127.0.0.1.", "0.0.0.0", "255.255.255.255", "198.18.0.1", "127.1", "127.0.1", "0.0", "1.1", "10.1", "1.2.3.4.5",
	"256.256.256.256", "999.1", "0177.0.0.1", "0177.1", "00.00", "0x7f.0.0.1", "127.0.0.0x1", "0x7f.0x0.0x0.0x1", "0X7F.0X1", "1.0x7f",
	"0x7f.1", "1.0x", "a.0x", "bob.0", "bob.example.1", "bob.example.007", "example.0xdeadbeef", "example.0XDEADBEEF", "example.0x7f.",
	"::1", "[::1]", "[::1].org", "2001:db8::1", "::ffff:127.0.0.1", "[2001:db8::1]:80", "fe80::1%eth0", "fe80::1%25eth0", "1::2.3.4.5",
	"2130706433", "0x7f000001", "017700000001", "127.0.0.1:80", "127.0.0.1/8", "１２７.0.0.1", "127。0。0。1", "1.2.3.4\n",
}

func TestParseHost(t *testing.T) {
	require.Len(t, name253, 253)
	require.Greater(t, len(accepted)+len(refused), 200)
	for spelling, want := range accepted {
		h, err := provider.ParseHost(spelling)
		require.NoErrorf(t, err, "%q", spelling)
		require.Equal(t, want, h.String())
	}
	for _, spelling := range refused {
		h, err := provider.ParseHost(spelling)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%q is accepted as %q: %v", spelling, h, err)
		require.Equal(t, provider.Host{}, h)
		require.Less(t, len(err.Error()), 2000, "an error is for people to read")
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestWithin(t *testing.T) {
	h := host(t, "alice.example.org")
	for zone, want := range map[string]bool{
		"alice.example.org": true, "example.org": true, "org": true, "lice.example.org": false, "www.alice.example.org": false,
		"example.com": false, "xample.org": false, "": false, "alice": false,
	} {
		require.Equal(t, want, h.Within(zone), zone)
	}
	require.Negative(t, h.Compare(host(t, "bob.example.org")))
	require.Zero(t, h.Compare(host(t, "ALICE.example.org.")))
}

var ldh = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// FuzzParseHost: what comes out is in canonical form, is its own canonical form, is what DNS would compare with what went
// in, and any other spelling that is equal for DNS comes out the same.
func FuzzParseHost(f *testing.F) {
	for s := range accepted {
		f.Add(s)
	}
	for _, s := range refused {
		if len(s) < 300 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := provider.ParseHost(s)
		spellings := []string{upperASCII(s)}
		if !strings.HasSuffix(s, ".") {
			spellings = append(spellings, s+".")
		}
		for _, same := range spellings {
			other, otherErr := provider.ParseHost(same)
			require.Equal(t, h, other, "%q and %q", s, same)
			require.Equal(t, err == nil, otherErr == nil, "%q and %q", s, same)
		}
		if err != nil {
			require.True(t, errdefs.IsInvalidArgument(err))
			return
		}
		name := h.String()
		require.Regexp(t, ldh, name)
		require.LessOrEqual(t, len(name), 253)
		again, err := provider.ParseHost(name)
		require.NoError(t, err)
		require.Equal(t, h, again)
		require.Equal(t, upperASCII(name), upperASCII(strings.TrimSuffix(s, ".")), "the name has become another")
	})
}

// upperASCII changes what DNS does not tell apart (RFC 4343), byte for byte.
func upperASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}
