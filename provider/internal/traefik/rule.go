package traefik

import (
	"strings"

	"github.com/netsoc/webspaced/provider"
)

// matcher is a function of Traefik's rule language.
type matcher string

const (
	matchHost    matcher = "Host"
	matchHostSNI matcher = "HostSNI"
)

// rule matches exactly one host. A [provider.Host] has no character that means anything in the rule language.
func rule(m matcher, host provider.Host) string { return string(m) + "(`" + host.String() + "`)" }

// challengeRule matches the HTTP-01 challenges of one host.
func challengeRule(host provider.Host) string {
	return rule(matchHost, host) + " && PathPrefix(`/.well-known/acme-challenge/`)"
}

// appendHost appends the host of a rule made by rule.
func appendHost(hosts []provider.Host, m matcher, s string) []provider.Host {
	s = strings.TrimPrefix(s, string(m)+"(`")
	host, err := provider.ParseHost(strings.TrimSuffix(s, "`)"))
	if err != nil {
		return hosts
	}
	return append(hosts, host)
}

// HostRule is the rule of a router for what comes in by HTTP.
func HostRule(host provider.Host) string { return rule(matchHost, host) }

// HostSNIRule is the rule of a router for TLS that is passed through.
func HostSNIRule(host provider.Host) string { return rule(matchHostSNI, host) }

// RuleHost returns the host of what HostRule or HostSNIRule has returned.
func RuleHost(rule string) (host provider.Host, ok bool) {
	for _, m := range []matcher{matchHost, matchHostSNI} {
		if hosts := appendHost(nil, m, rule); len(hosts) == 1 {
			return hosts[0], true
		}
	}
	return provider.Host{}, false
}
