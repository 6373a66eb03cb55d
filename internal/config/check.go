package config

import (
	"fmt"
	"net"
	"strings"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/provider"
)

// Accounts are the users in the form that identity/static takes.
func (s Static) Accounts() []static.Account {
	accounts := make([]static.Account, len(s.Users))
	for i, u := range s.Users {
		accounts[i] = static.Account{
			User:  identity.User{ID: identity.UserID(u.ID), Username: u.Username, Admin: u.Admin},
			Token: u.Token.Reveal(),
		}
		if u.SSHKey != "" {
			accounts[i].User.SSHKeys = []string{u.SSHKey}
		}
	}
	return accounts
}

// check fills in defaults that depend on other keys and returns what makes no sense although every key alone does.
func (c *Config) check() []*Problem {
	var problems []*Problem
	fail := func(key, format string, args ...any) {
		problems = append(problems, &Problem{Source: c.File, Key: key, Err: fmt.Errorf(format, args...)})
	}
	require := func(key string, missing bool, why string) {
		if missing {
			fail(key, "not set, but %s", why)
		}
	}

	if c.Identity.Provider == "" {
		c.Identity.Provider = "static"
		if !c.IAM.URL.IsZero() {
			c.Identity.Provider = "iamd"
		}
	}
	switch c.Identity.Provider {
	case "static":
		require("identity.static.users", len(c.Identity.Static.Users) == 0, "identity.provider is static")
		for _, err := range split(static.Check(c.Identity.Static.Accounts())) {
			fail("identity.static.users", "%w", err)
		}
	case "iamd":
		require("iam.url", c.IAM.URL.IsZero(), "identity.provider is iamd")
		require("iam.token", c.IAM.Token.IsZero(), "identity.provider is iamd")
	case "oidc":
		require("identity.oidc.issuer", c.Identity.OIDC.Issuer.IsZero(), "identity.provider is oidc")
		require("identity.oidc.audience", c.Identity.OIDC.Audience == "", "identity.provider is oidc")
		require("identity.oidc.admin_claim", c.Identity.OIDC.AdminClaim == "" && c.Identity.OIDC.AdminValue != "", "admin_value is")
	}

	c.checkLXD(fail)

	w := c.Webspaces
	require("webspaces.domain", w.Domain == "", "every webspace has a name in it")
	// With the longest ID, of 19 digits, the name of an instance is still a DNS label, and LXD wants a letter first.
	if p := w.InstancePrefix; p == "" || len(p) > 32 || !provider.IsLabel(p+"u1") || strings.Contains("0123456789", p[:1]) {
		fail("webspaces.instance_prefix", "at most 32 of a-z, 0-9 and '-' are wanted here, with a letter first")
	}
	if w.ConfigDefaults.StartupDelay > w.MaxStartupDelay {
		fail("webspaces.config_defaults.startup_delay", "longer than webspaces.max_startup_delay")
	}
	if w.Ports.Start > w.Ports.End {
		fail("webspaces.ports.start", "greater than webspaces.ports.end")
	}

	require("http.listen_address", c.HTTP.ListenAddress == "", "the API listens somewhere")
	require("gateway.http_listen_address", c.Gateway.HTTPListenAddress == "", "the gateway listens somewhere")
	if a := c.HTTP.ListenAddress; a != "" && a == c.Gateway.HTTPListenAddress && !strings.HasSuffix(string(a), ":0") {
		fail("gateway.http_listen_address", "the same as http.listen_address")
	}

	if c.Runtime == "local" {
		// Its instances are not isolated from the host, so only this host may reach them and their API.
		const why = "with runtime local a loopback address is wanted, such as 127.0.0.1:8080: nothing isolates its instances"
		if a := c.HTTP.ListenAddress; a != "" && !a.loopback() {
			fail("http.listen_address", why)
		}
		if a := c.Gateway.HTTPListenAddress; a != "" && !a.loopback() {
			fail("gateway.http_listen_address", why)
		}
	}

	require("local.directory", c.Runtime == "local" && c.Local.Directory == "", "runtime is local")
	c.checkTraefik(fail, require)
	c.checkTLS(fail, require)
	return problems
}

func (c *Config) checkTraefik(fail func(key, format string, args ...any), require func(key string, missing bool, why string)) {
	t := &c.Traefik
	if c.Webspaces.ConfigDefaults.SNIPassthrough && c.Gateway.TLSListenAddress == "" {
		c.Gateway.TLSListenAddress = ":8443"
	}
	if t.Provider == "none" {
		if c.Webspaces.Ports.KubernetesService != "" && t.Kubernetes.Kubeconfig == "" && t.Kubernetes.Namespace == "" {
			fail("webspaces.ports.kubernetes_service", "set traefik.kubernetes.namespace, which says where the Service is")
		}
		return
	}
	require("traefik.webspaced_url", t.WebspacedURL.IsZero(), "traefik.provider is "+t.Provider)
	require("traefik.file.directory", t.Provider == "file" && t.File.Directory == "", "traefik.provider is file")
	require("traefik.redis.addr", t.Provider == "redis" && t.Redis.Addr == "", "traefik.provider is redis")
	require("traefik.http.listen_address", t.Provider == "http" && t.HTTP.ListenAddress == "", "traefik.provider is http")
	host := t.WebspacedURL.Hostname()
	if t.Kubernetes.GatewayService == "" && t.Provider == "kubernetes" && provider.IsLabel(host) {
		t.Kubernetes.GatewayService = host
	}
	if _, port, err := net.SplitHostPort(string(c.Gateway.TLSListenAddress)); err == nil && t.WebspacedTLS == "" {
		t.WebspacedTLS = Address(net.JoinHostPort(host, port))
	}
}

// checkTLS also finds out which provider of certificates is meant, which the daemon of 2021 did not ask for.
func (c *Config) checkTLS(fail func(key, format string, args ...any), require func(key string, missing bool, why string)) {
	t, proxy, kube := &c.TLS, c.Traefik.Provider, c.Traefik.Kubernetes
	if t.Resolver.Name == "" && proxy == "redis" {
		t.Resolver.Name = c.Traefik.Redis.CertResolver
	}
	if t.Provider == "" {
		switch {
		case proxy == "kubernetes" && (kube.ClusterIssuer != "" || kube.Issuer != ""):
			t.Provider = "certmanager"
		case proxy != "none" && t.Resolver.Name != "":
			t.Provider = "resolver"
		default:
			t.Provider = "none"
		}
	}
	require("tls.static.certificates", t.Provider == "static" && len(t.Static.Certificates) == 0, "tls.provider is static")
	for i, cert := range t.Static.Certificates {
		if cert.CertFile == "" || cert.KeyFile == "" {
			fail(fmt.Sprintf("tls.static.certificates[%d]", i), "needs both cert_file and key_file")
		}
	}
	switch t.Provider {
	case "certmanager":
		require("traefik.kubernetes.cluster_issuer", kube.ClusterIssuer == "" && kube.Issuer == "", "tls.provider is certmanager")
		if kube.ClusterIssuer != "" && kube.Issuer != "" {
			fail("traefik.kubernetes.issuer", "given together with cluster_issuer; one of them is enough")
		}
		if proxy != "kubernetes" {
			fail("tls.provider", "certmanager goes with traefik.provider kubernetes only")
		}
	case "resolver":
		require("tls.resolver.name", t.Resolver.Name == "", "tls.provider is resolver")
		if proxy == "none" {
			fail("tls.provider", "resolver is one of Traefik's, but traefik.provider is none")
		}
	case "acme", "static":
		if proxy == "kubernetes" {
			fail("tls.provider", "%s does not go with traefik.provider kubernetes: use certmanager", t.Provider)
		}
		if proxy == "none" && c.Gateway.TLSListenAddress == "" {
			fail("gateway.tls_listen_address", "not set, but somebody has to use the certificates of tls.provider %s", t.Provider)
		}
		require("tls.acme.storage", t.Provider == "acme" && t.ACME.Storage == "", "tls.provider is acme")
	}
}

func (c *Config) checkLXD(fail func(key, format string, args ...any)) {
	t := c.LXD.TLS
	if (t.ClientCert == "") != t.ClientKey.IsZero() {
		fail("lxd.tls", "client_cert and client_key belong together: one of them is missing")
	}
	if c.LXD.URL.IsZero() {
		return
	}
	if c.LXD.UnixSocket != "" {
		fail("lxd.url", "given together with lxd.unix_socket; one of them is enough")
	}
	if c.LXD.URL.Scheme != "https" {
		fail("lxd.url", "LXD is reached by https:// only")
	}
	if c.Runtime == "lxd" && t.ClientCert == "" {
		fail("lxd.tls.client_cert", "not set, but lxd.url is")
	}
}

// split takes joined errors apart.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}
