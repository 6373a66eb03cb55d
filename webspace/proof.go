package webspace

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/provider"
)

// ProofOptions of a [DomainProof]. The zero value of each is its default.
type ProofOptions struct {
	// Key, of at least 16 bytes, is the secret that tokens are derived from. Whoever changes it makes all records with
	// tokens void. Empty: only records with the user's ID count.
	Key []byte
	// Resolver is the address (IP and port) of the DNS server that is asked. Empty: the system's.
	Resolver string
	// Timeout bounds one proof [5 s].
	Timeout time.Duration
}

// DomainProof looks for the TXT record by which a user proves to control a domain:
//
//	webspace:id:<user ID>   at _webspaced.<domain>, or at the domain itself
//	webspace:token:<token>  at _webspaced.<domain> alone; the token is that of this user and domain
//
// The whole text has to be equal, its strings put together. A record for a domain proves nothing about the names below or
// above it. A CNAME is not followed: who controls what an old alias points to would else control the domain. It is safe for
// concurrent use.
type DomainProof struct{ opts ProofOptions }

// NewDomainProof returns a DomainProof. InvalidArgument: an option is wrong.
func NewDomainProof(opts *ProofOptions) (*DomainProof, error) {
	if opts == nil {
		opts = &ProofOptions{}
	}
	p := &DomainProof{opts: *opts}
	p.opts.Key = append([]byte(nil), opts.Key...)
	set(&p.opts.Timeout, 5*time.Second)
	if len(p.opts.Key) > 0 && len(p.opts.Key) < 16 {
		return nil, invalid("the key of domain proofs has fewer than 16 bytes")
	}
	if p.opts.Timeout < 0 {
		return nil, invalid("the timeout of domain proofs can not be negative")
	}
	if opts.Resolver != "" {
		if server, err := netip.ParseAddrPort(opts.Resolver); err != nil || server.Port() == 0 {
			return nil, invalid("resolver %q is not an IP address with a port, such as 127.0.0.1:53", opts.Resolver)
		}
	}
	return p, nil
}

// Record is a TXT record.
type Record struct{ Name, Text string }

// Records returns those that prove the domain for the user, each of them by itself, the best one first.
func (p *DomainProof) Records(user identity.UserID, domain string) []Record {
	var records []Record
	if token := p.token(user, domain); token != "" {
		records = append(records, Record{proofLabel + "." + domain, tokenPrefix + token})
	}
	id := idPrefix + user.String()
	return append(records, Record{proofLabel + "." + domain, id}, Record{domain, id})
}

const (
	proofLabel  = "_webspaced"
	idPrefix    = "webspace:id:"
	tokenPrefix = "webspace:token:"
)

// token is 128 bits in lower-case hexadecimal, empty without a key.
func (p *DomainProof) token(user identity.UserID, domain string) string {
	if len(p.opts.Key) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, p.opts.Key)
	// No domain has a zero byte in it, no number either: no two pairs are written alike.
	fmt.Fprintf(mac, "webspaced domain proof\x00%d\x00%s", user, domain)
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Verify proves that a user controls a domain, and is what [Options] has as VerifyDomain. Errors are InvalidArgument, and name
// the record that is missing. One that is Unavailable, too, says that DNS has not answered: the record may be there.
func (p *DomainProof) Verify(ctx context.Context, user identity.UserID, domain string) error {
	host, err := provider.ParseHost(domain)
	if err != nil {
		return err
	}
	domain = host.String()
	asking, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	records := p.Records(user, domain)
	type answer struct {
		name  string
		texts []string
		err   error
	}
	names := []string{proofLabel + "." + domain, domain}
	answers := make(chan answer, len(names))
	for _, name := range names {
		go func() { // ends with its context
			texts, err := p.lookUp(asking, name)
			answers <- answer{name, texts, err}
		}()
	}
	found := map[string][]string{}
	var unanswered []error
	for range names {
		a := <-answers
		if a.err != nil {
			unanswered = append(unanswered, a.err)
		}
		for _, r := range records {
			if r.Name == a.name && proven(a.texts, r.Text) {
				return nil
			}
		}
		found[a.name] = a.texts
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	missing := &missingProof{domain: domain, want: records[0], found: describe(names, found)}
	if len(unanswered) > 0 {
		missing.unanswered = errors.Join(unanswered...)
	}
	return missing
}

// proven reports whether one of the texts is the wanted one. Both are public once they are in DNS: comparing them takes
// what time it takes.
func proven(texts []string, want string) bool {
	for _, text := range texts {
		if text == want {
			return true
		}
	}
	return false
}

// lookUp returns the texts of a name, none if there are none.
func (p *DomainProof) lookUp(ctx context.Context, name string) ([]string, error) {
	if len(name) > 253 {
		return nil, nil // DNS has no such name
	}
	servers, err := p.servers()
	if err != nil {
		return nil, err
	}
	query := new(dns.Msg).SetQuestion(name+".", dns.TypeTXT)
	query.SetEdns0(1232, false)
	for round := 0; ctx.Err() == nil; round++ {
		for _, server := range servers {
			trying, cancel := context.WithTimeout(ctx, p.opts.Timeout/2)
			var texts []string
			texts, err = exchange(trying, query, server)
			cancel()
			if err == nil {
				return texts, nil
			}
		}
		if round == 1 {
			break
		}
	}
	return nil, err
}

// servers are those of the option, or the system's as they are now.
func (p *DomainProof) servers() ([]string, error) {
	if p.opts.Resolver != "" {
		return []string{p.opts.Resolver}, nil
	}
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	var servers []string
	for _, server := range config.Servers[:min(3, len(config.Servers))] {
		servers = append(servers, net.JoinHostPort(server, config.Port))
	}
	if len(servers) == 0 {
		return nil, errors.New("/etc/resolv.conf names no server")
	}
	return servers, nil
}

// exchange asks one server, and again over TCP if the answer was cut.
func exchange(ctx context.Context, query *dns.Msg, server string) ([]string, error) {
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: time.Minute} // ctx is what ends it
		reply, _, err := client.ExchangeContext(ctx, query.Copy(), server)
		if err != nil {
			return nil, err
		}
		if !reply.Truncated {
			return texts(reply, query.Question[0])
		}
	}
	return nil, fmt.Errorf("%s cuts its answers short", server)
}

// texts returns what the reply has to say to the question.
func texts(reply *dns.Msg, question dns.Question) ([]string, error) {
	switch {
	case !reply.Response || len(reply.Question) != 1 || reply.Question[0].Qtype != question.Qtype ||
		!strings.EqualFold(reply.Question[0].Name, question.Name):
		return nil, errors.New("the answer is to another question")
	case reply.Rcode == dns.RcodeNameError:
		return nil, nil
	case reply.Rcode != dns.RcodeSuccess:
		return nil, fmt.Errorf("%s %s", question.Name, dns.RcodeToString[reply.Rcode])
	case !reply.RecursionAvailable && !reply.Authoritative && len(reply.Answer) == 0:
		return nil, errors.New("the server knows nothing of the name, and asks nobody else")
	}
	var all []string
	for _, rr := range reply.Answer {
		if txt, ok := rr.(*dns.TXT); ok && strings.EqualFold(txt.Hdr.Name, question.Name) {
			// What is not plain text has a backslash in it here, which no proof has.
			all = append(all, strings.Join(txt.Txt, ""))
		}
	}
	return all, nil
}

// missingProof is the error of a domain that is not proven.
type missingProof struct {
	domain     string
	want       Record
	found      string
	unanswered error
}

func (m *missingProof) Error() string {
	text := fmt.Sprintf("domain %s is not proven to be yours: create a TXT record named %s with the text %q", m.domain, m.want.Name, m.want.Text)
	if m.unanswered != nil {
		return fmt.Sprintf("%s; DNS does not answer (%v)", text, m.unanswered)
	}
	return fmt.Sprintf("%s; found %s", text, m.found)
}

// Unwrap gives it the classes that Verify promises.
func (m *missingProof) Unwrap() []error {
	if m.unanswered != nil {
		return []error{errdefs.ErrInvalidArgument, errdefs.ErrUnavailable}
	}
	return []error{errdefs.ErrInvalidArgument}
}

// describe says what was found that could have been meant: the texts that begin like a proof.
func describe(names []string, found map[string][]string) string {
	const most = 3
	var said []string
	others := 0
	for _, name := range names {
		for _, text := range found[name] {
			if !strings.Contains(strings.ToLower(text), "webspace") || len(said) == most {
				others++
				continue
			}
			said = append(said, fmt.Sprintf("%.100q at %s", text, name))
		}
	}
	switch {
	case len(said) == 0 && others == 0:
		return "no TXT record there"
	case len(said) == 0:
		return fmt.Sprintf("%d TXT records, none of them such a one", others)
	case others == 0:
		return strings.Join(said, ", ")
	default:
		return fmt.Sprintf("%s and %d others", strings.Join(said, ", "), others)
	}
}
