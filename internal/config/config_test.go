package config_test

import (
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/config"
)

//go:generate go test -run TestSample -update .

var update = flag.Bool("update", false, "write deploy/webspaced.yaml")

// valid is what every configuration needs.
const valid = `
webspaces:
  domain: webspaces.example.org
identity:
  static:
    users: [{id: 1, username: admin, admin: true, token: admins-token}]
`

// write makes a file in a directory of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func load(t *testing.T, text string, environ ...string) *config.Config {
	t.Helper()
	c, warnings, err := config.Load(write(t, "webspaced.yaml", text), environ)
	require.NoError(t, err)
	require.Empty(t, warnings)
	return c
}

func TestDefaults(t *testing.T) {
	c := load(t, valid)
	require.EqualValues(t, "webspaces.example.org", c.Webspaces.Domain)
	require.Equal(t, "static", c.Identity.Provider)
	require.Equal(t, "admins-token", c.Identity.Static.Users[0].Token.Reveal())
	require.Equal(t, "lxd", c.Runtime)
	require.Equal(t, "ws-", c.Webspaces.InstancePrefix)
	require.Equal(t, 3*time.Second, c.Webspaces.ConfigDefaults.StartupDelay)
	require.Equal(t, 80, c.Webspaces.ConfigDefaults.HTTPPort)
	require.Equal(t, 50*time.Second, c.Gateway.HoldTimeout)
	require.Equal(t, 1024, c.Gateway.MaxHeldPerWebspace)
	require.Equal(t, 64, c.Gateway.MaxHeldPerSource)
	require.Equal(t, 10000, c.Gateway.MaxHeld)
	require.Equal(t, "none", c.Traefik.Provider)
	require.Equal(t, "direct", c.Traefik.Mode)
	require.Equal(t, 3*time.Second, c.Traefik.Settle)
	require.Equal(t, 30*time.Second, c.Identity.CacheTTL)
	require.Equal(t, "none", c.TLS.Provider)
}

// TestFileOf2021 loads every key that the daemon had in 2021.
func TestFileOf2021(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ca", "key", "password", "token"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("content of "+name+"\n"), 0o600))
	}
	path := write(t, "webspaced.yaml", strings.ReplaceAll(`
log_level: trace
timeouts: {startup: 20s, shutdown: 1m}
iam:
  url: https://iam.example.org/v1
  token_file: DIR/token
  allow_insecure: true
lxd:
  url: https://lxd.example.org:8443
  tls:
    ca_file: DIR/ca
    client_cert: inline
    client_key_file: DIR/key
    trust_password_file: DIR/password
    allow_insecure: false
webspaces:
  lxd_profile: webspace
  instance_prefix: ws-
  domain: ng.example.org
  config_defaults: {startup_delay: 3, http_port: 8080, sni_passthrough: true}
  max_startup_delay: 60.5
  ip_timeout: 30s
  ports: {start: 50000, end: 50100, max: 10, kubernetes_service: ports}
http:
  listen_address: ':80'
  cors: {allowed_origins: ['*']}
traefik:
  provider: kubernetes
  redis: {addr: 'redis:6379', db: 1, cert_resolver: le}
  kubernetes: {namespace: webspace-ng, default_secret: tls, cluster_issuer: le}
  https_entrypoint: https
  default_sans: [ng.example.org, '*.ng.example.org']
  webspaced_url: http://webspaced
  iam_token_file: DIR/token
`, "DIR", dir))
	c, warnings, err := config.Load(path, nil)
	require.NoError(t, err)

	require.Equal(t, "iamd", c.Identity.Provider)
	require.Equal(t, "content of token", c.IAM.Token.Reveal())
	require.Equal(t, "content of ca", c.LXD.TLS.CA)
	require.Equal(t, 3*time.Second, c.Webspaces.ConfigDefaults.StartupDelay)
	require.Equal(t, 60*time.Second+time.Second/2, c.Webspaces.MaxStartupDelay)
	require.Equal(t, []string{"ng.example.org", "*.ng.example.org"}, c.Traefik.DefaultSANs)
	require.Equal(t, "webspaced", c.Traefik.WebspacedURL.Hostname())

	require.Len(t, warnings, 1)
	require.Equal(t, path+":34: traefik.iam_token_file: has no effect: the gateway boots webspaces by itself and needs no token; remove the key", warnings[0].Error())

	require.Equal(t, "certmanager", c.TLS.Provider)
	require.Equal(t, "webspaced", c.Traefik.Kubernetes.GatewayService)
	require.EqualValues(t, ":8443", c.Gateway.TLSListenAddress)
	require.EqualValues(t, "webspaced:8443", c.Traefik.WebspacedTLS)
}

// What follows from other keys, and what does not go together.
func TestProxiesAndCertificates(t *testing.T) {
	const redis = "traefik: {provider: redis, webspaced_url: 'http://127.0.0.1:8081', redis: {addr: '127.0.0.1:6379', cert_resolver: le}}\n"
	c := load(t, valid+redis+"gateway: {tls_listen_address: ':9443'}\n")
	require.Equal(t, "resolver", c.TLS.Provider)
	require.Equal(t, "le", c.TLS.Resolver.Name)
	require.EqualValues(t, "127.0.0.1:9443", c.Traefik.WebspacedTLS)
	require.Equal(t, "none", load(t, valid+redis+"tls: {provider: none}\n").TLS.Provider)
	require.Equal(t, 20, c.Webspaces.Domains.Max)

	for text, want := range map[string]string{
		"traefik: {provider: redis}":                 "traefik.redis.addr: not set, but traefik.provider is redis",
		"traefik: {provider: http}":                  "traefik.webspaced_url: not set, but traefik.provider is http",
		"tls: {provider: certmanager}":               "tls.provider: certmanager goes with traefik.provider kubernetes only",
		"tls: {provider: resolver}":                  "tls.resolver.name: not set, but tls.provider is resolver",
		"tls: {provider: acme}":                      "gateway.tls_listen_address: not set, but somebody has to use the certificates of tls.provider acme",
		"tls: {provider: static}":                    "tls.static.certificates: not set, but tls.provider is static",
		"tls: {provider: acme, acme: {storage: ''}}": "tls.acme.storage: not set, but tls.provider is acme",
		"traefik: {provider: kubernetes, webspaced_url: 'http://w', kubernetes: {cluster_issuer: a, issuer: b}}": "traefik.kubernetes.issuer: given together with cluster_issuer",
		"traefik: {provider: kubernetes, webspaced_url: 'http://w'}\ntls: {provider: acme}":                      "acme does not go with traefik.provider kubernetes",
	} {
		_, _, err := config.Load(write(t, "webspaced.yaml", valid+text+"\n"), nil)
		require.ErrorContains(t, err, want, text)
	}
}

func TestEnvironment(t *testing.T) {
	token := write(t, "token", "  from a file\n")
	c := load(t, valid+"gateway: {max_held: 5}\niam: {token: from yaml}\n",
		"WSD_HTTP_LISTEN_ADDRESS=127.0.0.1:1234",
		"WSD_GATEWAY_MAX_HELD=6",
		"WSD_GATEWAY_HOLD_TIMEOUT=2.5",
		"WSD_GATEWAY_TRUSTED_PROXIES=198.18.0.0/24, ::1",
		"WSD_HTTP_CORS_ALLOWED_ORIGINS=[https://a.example.org]",
		"WSD_WEBSPACES_CONFIG_DEFAULTS_SNI_PASSTHROUGH=true",
		"WSD_IAM_TOKEN_FILE="+token,
		"WSD_LOG_LEVEL=", // sets nothing
		"WSDX=1", "PATH=/bin",
	)
	require.EqualValues(t, "127.0.0.1:1234", c.HTTP.ListenAddress)
	require.Equal(t, 6, c.Gateway.MaxHeld)
	require.Equal(t, 2500*time.Millisecond, c.Gateway.HoldTimeout)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("::1/128")}, c.Gateway.TrustedProxies)
	require.Equal(t, []config.Origin{"https://a.example.org"}, c.HTTP.CORS.AllowedOrigins)
	require.True(t, c.Webspaces.ConfigDefaults.SNIPassthrough)
	require.Equal(t, "from a file", c.IAM.Token.Reveal())
}

func TestEnvironmentAlone(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, f := range config.Files() {
		if _, err := os.Stat(f); err == nil {
			t.Skip(f + " exists on this machine")
		}
	}
	_, _, err := config.Load("", []string{"PATH=/bin"})
	require.ErrorContains(t, err, "none of webspaced.yaml, /etc/webspaced/webspaced.yaml, /run/config/webspaced.yaml exists")

	c, _, err := config.Load("", []string{
		"WSD_WEBSPACES_DOMAIN=localhost",
		"WSD_IDENTITY_STATIC_USERS=[{id: 1, username: admin, token: secret}]",
	})
	require.NoError(t, err)
	require.Empty(t, c.File)
	require.Equal(t, "secret", c.Identity.Static.Users[0].Token.Reveal())

	require.NoError(t, os.WriteFile("webspaced.yaml", []byte(valid), 0o600))
	c, _, err = config.Load("", nil)
	require.NoError(t, err)
	require.Equal(t, "webspaced.yaml", c.File)
}

// TestEveryKeyFromEnvironment sets each key to its own default, so a key that no variable reaches shows as unknown.
func TestEveryKeyFromEnvironment(t *testing.T) {
	seen := make(map[string]bool)
	var environ []string
	for _, k := range config.Keys() {
		require.False(t, seen[k.Env], k.Env)
		require.False(t, k.File && seen[k.Env+"_FILE"], k.Env)
		seen[k.Env], seen[k.Env+"_FILE"] = true, k.File
		require.NotEmpty(t, k.Doc, k.Name)
		if k.Default != "" {
			environ = append(environ, k.Env+"="+k.Default)
		}
	}
	require.Equal(t, load(t, valid).Webspaces, load(t, valid, environ...).Webspaces)
}

func TestMistakes(t *testing.T) {
	for name, test := range map[string]struct {
		yaml    string
		environ []string
		want    []string // FILE stands for the file
	}{
		"unknown keys": {yaml: `
htp: {listen_address: ":1"}
http:
  listen_adress: ":1"
  colour: red
domain: example.org
iam: {token_fil: x}
`, want: []string{
			"FILE:2: htp: unknown key; is http meant?",
			"FILE:4: http.listen_adress: unknown key; is http.listen_address meant?",
			"FILE:5: http.colour: unknown key",
			"FILE:6: domain: unknown key; is webspaces.domain meant?",
			"FILE:7: iam.token_fil: unknown key; is iam.token_file meant?",
		}},
		"local runtime for everybody": {yaml: `
webspaces: {domain: example.org}
runtime: local
identity: {static: {users: [{id: 1, username: a, token: t}]}}
http: {listen_address: ":8080"}
gateway: {http_listen_address: "198.18.0.1:80"}
`, want: []string{
			"FILE: http.listen_address: with runtime local a loopback address is wanted, such as 127.0.0.1:8080: nothing isolates its instances",
			"FILE: gateway.http_listen_address: with runtime local a loopback address is wanted, such as 127.0.0.1:8080: nothing isolates its instances",
		}},
		"unknown variables": {environ: []string{"WSD_HTTP_LISTEN_ADRESS=:1", "WSD_X=1"}, want: []string{
			"WSD_HTTP_LISTEN_ADRESS: unknown variable; is WSD_HTTP_LISTEN_ADDRESS meant?",
			"WSD_X: unknown variable",
		}},
		"values": {yaml: `
log_level: loud
log_format: xml
timeouts: {startup: soon, shutdown: -1}
gateway:
  http_listen_address: nowhere
  max_held: many
  max_held_per_source: 0
  trusted_proxies: [198.18.0.1/24, localhost]
webspaces:
  domain: under_score.example.org
  config_defaults: {http_port: 65536, sni_passthrough: perhaps}
http:
  listen_address: {port: 1}
  cors: {allowed_origins: [example.org, "https://example.org/"]}
iam: {url: "ftp://example.org", token: [x]}
lxd: {url: "https://user:hunter2@example.org"}
traefik: [redis]
identity: {static: {users: 5}}
`, want: []string{
			"FILE:2: log_level: a level is trace, debug, info, warn or error",
			"FILE:3: log_format: one of text, json is wanted here",
			"FILE:4: timeouts.startup: a duration is wanted here: 30s, 1m30s, or a number of seconds",
			"FILE:4: timeouts.shutdown: at least 1s is wanted here",
			"FILE:6: gateway.http_listen_address: where to listen is ADDRESS:PORT or :PORT",
			"FILE:7: gateway.max_held: a whole number is wanted here",
			"FILE:8: gateway.max_held_per_source: at least 1 is wanted here",
			"FILE:9: gateway.trusted_proxies[0]: the address of this network is 198.18.0.0/24",
			"FILE:9: gateway.trusted_proxies[1]: an address or a network such as 198.18.0.0/24 is wanted here",
			"FILE:11: webspaces.domain: not a DNS name: labels of a-z, 0-9 and '-', separated by dots",
			"FILE:12: webspaces.config_defaults.http_port: at most 65535 is wanted here",
			"FILE:12: webspaces.config_defaults.sni_passthrough: true or false is wanted here",
			"FILE:14: http.listen_address: a single value is wanted here",
			`FILE:15: http.cors.allowed_origins[0]: an origin is http(s)://HOST or http(s)://HOST:PORT in lower case, or "*"`,
			`FILE:15: http.cors.allowed_origins[1]: an origin is http(s)://HOST or http(s)://HOST:PORT in lower case, or "*"`,
			"FILE:16: iam.url: a URL begins with http:// or https://",
			"FILE:16: iam.token: a single value is wanted here",
			"FILE:17: lxd.url: a URL here has no user or password in it",
			"FILE:18: traefik: a section with keys is wanted here",
			"FILE:19: identity.static.users: a list is wanted here",
		}},
		"variables": {yaml: valid, environ: []string{"WSD_GATEWAY_MAX_HELD=-5", "WSD_HTTP_CORS_ALLOWED_ORIGINS=[", "WSD_IDENTITY_STATIC_USERS=[{id: 0}]"}, want: []string{
			"WSD_GATEWAY_MAX_HELD: gateway.max_held: at least 1 is wanted here",
			"WSD_HTTP_CORS_ALLOWED_ORIGINS: not a list in YAML",
			"WSD_IDENTITY_STATIC_USERS: identity.static.users[0].id: at least 1 is wanted here",
		}},
		"twins": {yaml: "iam:\n  token: a\n  token_file: b\nlxd:\n  tls:\n    ca_file: /does/not/exist\n    client_key_file: /\n    server_cert_file: /dev/null", want: []string{
			"FILE:3: iam.token_file: given together with iam.token; one of them is enough",
			`FILE:6: lxd.tls.ca_file: file "/does/not/exist" can not be read: no such file or directory`,
			`FILE:7: lxd.tls.client_key_file: file "/" can not be read: not a file`,
			`FILE:8: lxd.tls.server_cert_file: file "/dev/null" is empty`,
		}},
		"twice":            {yaml: "http: {}\nhttp: {}\n", want: []string{"FILE:2: http: given twice"}},
		"documents":        {yaml: valid + "---\nhttp: {}\n", want: []string{"FILE:7: more than one YAML document"}},
		"not YAML":         {yaml: "http:\n\tlisten_address: x\n", want: []string{"FILE:2: not YAML: found character that cannot start any token"}},
		"not a mapping":    {yaml: "- http\n", want: []string{"FILE:1: a section with keys is wanted here"}},
		"secret as anchor": {yaml: "iam: {token: *hunter2}\n", want: []string{"FILE: not YAML: unknown anchor (...) referenced"}},
		"nothing": {yaml: "\n", want: []string{
			"FILE: identity.static.users: not set, but identity.provider is static",
			"FILE: webspaces.domain: not set, but every webspace has a name in it",
		}},
		"sense": {yaml: valid + `
runtime: lxd
lxd: {url: "http://lxd", unix_socket: /s, tls: {client_key: k}}
http: {listen_address: ":80"}
gateway: {http_listen_address: ":80"}
traefik: {provider: file}
tls: {provider: static, static: {certificates: [{cert_file: a}]}}
`, environ: []string{"WSD_WEBSPACES_PORTS_START=2", "WSD_WEBSPACES_PORTS_END=1", "WSD_WEBSPACES_CONFIG_DEFAULTS_STARTUP_DELAY=61", "WSD_WEBSPACES_INSTANCE_PREFIX=0_"}, want: []string{
			"FILE: lxd.tls: client_cert and client_key belong together: one of them is missing",
			"FILE: lxd.url: given together with lxd.unix_socket; one of them is enough",
			"FILE: lxd.url: LXD is reached by https:// only",
			"FILE: lxd.tls.client_cert: not set, but lxd.url is",
			"FILE: webspaces.instance_prefix: at most 32 of a-z, 0-9 and '-' are wanted here, with a letter first",
			"FILE: webspaces.config_defaults.startup_delay: longer than webspaces.max_startup_delay",
			"FILE: webspaces.ports.start: greater than webspaces.ports.end",
			"FILE: gateway.http_listen_address: the same as http.listen_address",
			"FILE: traefik.webspaced_url: not set, but traefik.provider is file",
			"FILE: traefik.file.directory: not set, but traefik.provider is file",
			"FILE: tls.static.certificates[0]: needs both cert_file and key_file",
		}},
		"users": {yaml: "webspaces: {domain: localhost}\nidentity: {static: {users: [{id: 1, username: a, token: t}, {id: 1, username: b, token: t}]}}", want: []string{
			"FILE: identity.static.users: user 2 of the list: has the ID of user 1, 1: invalid argument",
			"FILE: identity.static.users: user 2 of the list: has the token of user 1: invalid argument",
		}},
		"shown": {yaml: valid + "iam: {token: (hidden)}\n", want: []string{"FILE:7: iam.token: this is what stands for a hidden secret, not the secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, "webspaced.yaml", test.yaml)
			c, _, err := config.Load(path, test.environ)
			require.Nil(t, c)
			require.Error(t, err)
			require.ElementsMatch(t, test.want, strings.Split(strings.ReplaceAll(err.Error(), path, "FILE"), "\n"))
			_, ok := errors.AsType[*config.Problem](err)
			require.True(t, ok)
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, _, err := config.Load("/does/not/exist.yaml", []string{"WSD_GATEWAY_MAX_HELD=x"})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "/does/not/exist.yaml: can not be read")
	require.ErrorContains(t, err, "WSD_GATEWAY_MAX_HELD: gateway.max_held:", "all mistakes at once")

	_, _, err = config.Load(write(t, "large.yaml", strings.Repeat("#\n", 1<<20)), nil)
	require.ErrorContains(t, err, "larger than")
}

var secrets = []string{"CANARY-inline", "CANARY-file", "CANARY-key", "CANARY-user"}

func TestShowHidesSecrets(t *testing.T) {
	c := load(t, `
webspaces: {domain: Example.ORG.}
identity: {static: {users: [{id: 1, username: a, token: CANARY-user}]}}
iam: {token: CANARY-inline}
lxd: {tls: {client_cert: public, client_key: CANARY-key}}
`, "WSD_TRAEFIK_REDIS_PASSWORD_FILE="+write(t, "password", "CANARY-file"))
	var b strings.Builder
	_, err := c.WriteTo(&b)
	require.NoError(t, err)
	requireNoSecret(t, b.String())
	require.Contains(t, b.String(), "domain: example.org\n")
	require.Contains(t, b.String(), "client_cert: public\n")
	require.Contains(t, b.String(), "client_key: (hidden)\n")
	require.Contains(t, b.String(), "log_level: info\n")
	require.Contains(t, b.String(), "hold_timeout: 50s\n")

	_, _, err = config.Load(write(t, "shown.yaml", b.String()), nil)
	require.ErrorContains(t, err, "hidden secret")
	text := regexp.MustCompile(`(?m)^( *(password|token|client_key)): .*hidden.*`).ReplaceAllString(b.String(), "$1: again")
	shown, _, err := config.Load(write(t, "shown.yaml", text), nil)
	require.NoError(t, err, "what is shown can be loaded again")
	require.Equal(t, c.Webspaces, shown.Webspaces)
}

func requireNoSecret(t *testing.T, text string) {
	t.Helper()
	for _, s := range secrets {
		require.NotContains(t, text, s)
	}
}
