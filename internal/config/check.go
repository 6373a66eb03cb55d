package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/netsoc/webspaced/identity"
	"github.com/netsoc/webspaced/identity/static"
	"github.com/netsoc/webspaced/provider"
)

// notYet has the values that are understood, but that this version can not act on. What is built is taken off here.
var notYet = map[string]func(*Config) bool{
	"gateway.tls_listen_address":                func(c *Config) bool { return c.Gateway.TLSListenAddress != "" },
	"webspaces.config_defaults.sni_passthrough": func(c *Config) bool { return c.Webspaces.ConfigDefaults.SNIPassthrough },
	"webspaces.ports.kubernetes_service":        func(c *Config) bool { return c.Webspaces.Ports.KubernetesService != "" },
	"traefik.provider kubernetes":               func(c *Config) bool { return c.Traefik.Provider == "kubernetes" },
	"traefik.provider redis":                    func(c *Config) bool { return c.Traefik.Provider == "redis" },
	"traefik.provider http":                     func(c *Config) bool { return c.Traefik.Provider == "http" },
	"tls.provider certmanager":                  func(c *Config) bool { return c.TLS.Provider == "certmanager" },
	"tls.provider acme":                         func(c *Config) bool { return c.TLS.Provider == "acme" },
	"tls.provider resolver":                     func(c *Config) bool { return c.TLS.Provider == "resolver" },
	"tls.provider static":                       func(c *Config) bool { return c.TLS.Provider == "static" },
}

// Unsupported names everything in the configuration that is valid, but that this version can not act on; nil if there
// is nothing. Who is about to act on the configuration calls it: a configuration can be checked and shown all the same.
func (c *Config) Unsupported() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(notYet)) {
		if notYet[name](c) {
			errs = append(errs, &Problem{Source: c.File, Err: fmt.Errorf("%s is not part of this version", name)})
		}
	}
	return errors.Join(errs...)
}

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

	require("traefik.webspaced_url", c.Traefik.Provider != "none" && c.Traefik.WebspacedURL.IsZero(), "traefik.provider is "+c.Traefik.Provider)
	require("traefik.file.directory", c.Traefik.Provider == "file" && c.Traefik.File.Directory == "", "traefik.provider is file")
	require("traefik.redis.addr", c.Traefik.Provider == "redis" && c.Traefik.Redis.Addr == "", "traefik.provider is redis")
	require("local.directory", c.Runtime == "local" && c.Local.Directory == "", "runtime is local")

	require("tls.static.certificates", c.TLS.Provider == "static" && len(c.TLS.Static.Certificates) == 0, "tls.provider is static")
	for i, cert := range c.TLS.Static.Certificates {
		if cert.CertFile == "" || cert.KeyFile == "" {
			fail(fmt.Sprintf("tls.static.certificates[%d]", i), "needs both cert_file and key_file")
		}
	}
	return problems
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
