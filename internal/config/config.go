// Package config loads the daemon's configuration: a YAML file, environment variables over it, defaults under it.
//
// Each key is declared once, as a field of [Config]: its name, default, limits and documentation are the field's tags,
// and everything else (loading, environment variables, the twins that name a file, the sample file) follows from them.
// [Load] reports every mistake it finds at once, each with its key and where it stands.
//
// The tags are
//
//	yaml      the key's name in its section
//	default   the value when nothing sets it, written as in YAML
//	enum      the values it may have, separated by |
//	min, max  limits of a number or duration; without min, negative values are refused
//	file      "yes": the key has a twin NAME_file that names a file with the value
//	replaced  the key is accepted, does nothing, and this says what to use instead
//	sample    the value in the sample file, where the key then stands uncommented
//	example   what the sample file shows, commented, for a key without a default
//	doc       what it means
package config

import (
	"net/netip"
	"time"
)

// Config is the effective configuration. It is not changed after [Load].
type Config struct {
	LogLevel  Level  `yaml:"log_level" default:"info" doc:"Messages below this level are not logged: trace, debug, info, warn or error."`
	LogFormat string `yaml:"log_format" default:"text" enum:"text|json" doc:"How log messages are written: text or json."`
	Runtime   string `yaml:"runtime" default:"lxd" enum:"lxd|local" doc:"What runs instances: lxd (LXD or Incus), or local (processes of this host without any isolation; for trying and developing)."`

	Timeouts  Timeouts  `yaml:"timeouts" doc:"How long the daemon may take. Durations are written as 30s or 1m30s; a plain number means seconds, here and everywhere."`
	Identity  Identity  `yaml:"identity" doc:"Who the users are."`
	IAM       IAM       `yaml:"iam" doc:"The iamd server (identity.provider iamd)."`
	LXD       LXD       `yaml:"lxd" doc:"The LXD or Incus server (runtime lxd)."`
	Local     Local     `yaml:"local" doc:"Instances as processes of this host (runtime local)."`
	Webspaces Webspaces `yaml:"webspaces" doc:"Webspaces and what they may do."`
	HTTP      HTTP      `yaml:"http" doc:"The REST API."`
	Gateway   Gateway   `yaml:"gateway" doc:"The gateway, which holds requests while the webspace they are for boots."`
	Traefik   Traefik   `yaml:"traefik" doc:"Routes for the reverse proxy in front."`
	TLS       TLS       `yaml:"tls" doc:"Certificates of custom domains."`

	// File is the file that was loaded; empty if there was none.
	File string `yaml:"-"`
}

// Timeouts bound what the daemon itself does.
type Timeouts struct {
	Startup  time.Duration `yaml:"startup" default:"30s" min:"1s" doc:"How long the daemon tries to reach what it depends on before it gives up."`
	Unready  time.Duration `yaml:"unready" default:"5s" doc:"How long the daemon goes on serving once it has been told to end, with /readyz saying no: load balancers look elsewhere, and a daemon that was started in its place takes over all that comes."`
	Shutdown time.Duration `yaml:"shutdown" default:"30s" min:"1s" doc:"How long requests under way may go on after that."`
}

// Identity says where users come from.
type Identity struct {
	Provider string        `yaml:"provider" enum:"iamd|oidc|static" example:"static" doc:"iamd, oidc or static. Without it iamd if iam.url is set, else static."`
	CacheTTL time.Duration `yaml:"cache_ttl" default:"30s" doc:"How long an answer of iamd is used again; 0 asks each time. A log-out takes effect within this time."`
	Static   Static        `yaml:"static" doc:"Users listed here (identity.provider static)."`
	OIDC     OIDC          `yaml:"oidc" doc:"An OpenID Connect issuer (identity.provider oidc)."`
}

// Static lists users.
type Static struct {
	Users []User `yaml:"users" doc:"The users. The IDs own the webspaces: an ID is never given to somebody else."`
}

// User is a user of the static identity provider.
type User struct {
	ID       int64  `yaml:"id" min:"1" sample:"1000" doc:"Number that identifies the user for ever."`
	Username string `yaml:"username" sample:"alice" doc:"Name of the user and of the default domain: username.webspaces.domain."`
	Admin    bool   `yaml:"admin" default:"false" doc:"Whether the user reaches every webspace."`
	SSHKey   string `yaml:"ssh_key" example:"ssh-ed25519 AAAA... alice@laptop" doc:"Public key in authorized_keys format."`
	Token    Secret `yaml:"token" file:"yes" sample:"/etc/webspaced/alice.token" doc:"Bearer token, or a file with it: 'openssl rand -hex 32' makes a good one."`
}

// OIDC describes an OpenID Connect issuer and which claims say what.
type OIDC struct {
	Issuer        URL    `yaml:"issuer" example:"https://accounts.example.org" doc:"The issuer's URL, exactly as it calls itself: a slash at the end counts."`
	Audience      string `yaml:"audience" example:"webspaced" doc:"What a token's audience must contain."`
	UsernameClaim string `yaml:"username_claim" default:"preferred_username" doc:"Claim with the username."`
	IDClaim       string `yaml:"id_claim" default:"sub" doc:"Claim with the user's number, which owns the webspace: it is never given to somebody else. Here and below, dots lead into objects, as in realm_access.roles."`
	AdminClaim    string `yaml:"admin_claim" example:"groups" doc:"Claim that says who is an admin: it is true, or has admin_value. Without it nobody is."`
	AdminValue    string `yaml:"admin_value" example:"webspace-admins" doc:"Value of that claim, or an element of it, that makes an admin."`
	SSHKeyClaim   string `yaml:"ssh_key_claim" example:"ssh_public_key" doc:"Claim with the SSH public key, or a list of them."`
}

// IAM says how iamd is reached.
type IAM struct {
	URL           URL    `yaml:"url" example:"https://iam.example.org/v1" doc:"Base URL of its API."`
	Token         Secret `yaml:"token" file:"yes" example:"/etc/webspaced/iam.token" doc:"Token of an admin, with which users are looked up."`
	AllowInsecure bool   `yaml:"allow_insecure" default:"false" doc:"Do not verify its certificate."`
}

// LXD says how LXD or Incus is reached.
type LXD struct {
	UnixSocket string `yaml:"unix_socket" example:"/var/lib/lxd/unix.socket" doc:"Its socket. With neither unix_socket nor url, the usual places are tried."`
	URL        URL    `yaml:"url" example:"https://lxd.example.org:8443" doc:"Its URL, instead of the socket."`
	Project    string `yaml:"project" default:"default" doc:"The project that the instances are in."`
	TLS        LXDTLS `yaml:"tls" doc:"Certificates for url."`
}

// LXDTLS has certificates in PEM format.
type LXDTLS struct {
	CA            string `yaml:"ca" file:"yes" example:"/etc/webspaced/lxd-ca.crt" doc:"Certificate of the authority that signed the server's."`
	ServerCert    string `yaml:"server_cert" file:"yes" example:"/etc/webspaced/lxd-server.crt" doc:"The server's own certificate, if no authority signed it."`
	ClientCert    string `yaml:"client_cert" file:"yes" example:"/etc/webspaced/lxd-client.crt" doc:"Our certificate."`
	ClientKey     Secret `yaml:"client_key" file:"yes" example:"/etc/webspaced/lxd-client.key" doc:"Its private key."`
	TrustPassword Secret `yaml:"trust_password" file:"yes" example:"/etc/webspaced/lxd.password" doc:"Password with which the server is asked once to trust our certificate."`
	AllowInsecure bool   `yaml:"allow_insecure" default:"false" doc:"Do not verify the server's certificate."`
}

// Local says where local instances live.
type Local struct {
	Directory string `yaml:"directory" default:"/var/lib/webspaced" doc:"Directory for the instances' files."`
}

// Webspaces has what holds for all webspaces.
type Webspaces struct {
	Domain          Domain         `yaml:"domain" sample:"webspaces.example.org" doc:"A webspace's default domain is USERNAME.DOMAIN. Required."`
	LXDProfile      string         `yaml:"lxd_profile" default:"default" doc:"Profile that new instances get."`
	InstancePrefix  string         `yaml:"instance_prefix" default:"ws-" doc:"Instances are named PREFIXuID, such as ws-u1000. Instances with another prefix are left alone."`
	MaxStartupDelay time.Duration  `yaml:"max_startup_delay" default:"60s" min:"1s" doc:"The longest startup_delay that a user may choose."`
	IPTimeout       time.Duration  `yaml:"ip_timeout" default:"30s" min:"1s" doc:"How long to wait for the address of an instance that has started."`
	ConfigDefaults  ConfigDefaults `yaml:"config_defaults" doc:"Configuration of a webspace whose user has not changed it."`
	Ports           Ports          `yaml:"ports" doc:"Port forwards."`
	Domains         Domains        `yaml:"domains" doc:"Custom domains. Their owners prove them with a DNS record of type TXT."`
}

// Domains bounds custom domains.
type Domains struct {
	Max      int           `yaml:"max" default:"20" max:"1000" doc:"How many custom domains a webspace may have."`
	Resolver Address       `yaml:"resolver" example:"127.0.0.1:53" doc:"DNS server that is asked for the proofs. Without it those of the host."`
	ProofKey Secret        `yaml:"proof_key" file:"yes" example:"/etc/webspaced/proof.key" doc:"Secret of which the tokens are made that a proof may have instead of the user's number. Without it only the number counts."`
	Recheck  time.Duration `yaml:"recheck" default:"24h" min:"1m" doc:"How often the proof of each domain is looked at again. A domain whose proof is missing for 72 hours is not routed any more."`
}

// ConfigDefaults is the configuration of a new webspace.
type ConfigDefaults struct {
	StartupDelay   time.Duration `yaml:"startup_delay" default:"3s" doc:"The longest time to wait, after the instance has started, until its port takes connections."`
	HTTPPort       int           `yaml:"http_port" default:"80" min:"1" max:"65535" doc:"Port in the instance that requests go to."`
	SNIPassthrough bool          `yaml:"sni_passthrough" default:"false" doc:"Pass TLS connections through instead of terminating them."`
}

// Ports bounds port forwards.
type Ports struct {
	Start             int    `yaml:"start" default:"49152" min:"1" max:"65535" doc:"The first external port."`
	End               int    `yaml:"end" default:"65535" min:"1" max:"65535" doc:"The last external port."`
	Max               int    `yaml:"max" default:"64" max:"65535" doc:"How many forwards a webspace may have."`
	ProxyProtocol     bool   `yaml:"proxy_protocol" default:"false" doc:"Begin each connection to a webspace's port with a PROXY header, version 2, that says who the client is. Whatever listens there must expect it."`
	KubernetesService string `yaml:"kubernetes_service" example:"webspaced-ports" doc:"Kubernetes Service that gets the forwarded ports."`
}

// HTTP says where the REST API is.
type HTTP struct {
	ListenAddress Address `yaml:"listen_address" default:":8080" doc:"Where the API listens: ADDRESS:PORT, or :PORT for every address."`
	MetricsToken  Secret  `yaml:"metrics_token" file:"yes" example:"/etc/webspaced/metrics.token" doc:"Bearer token that /metrics asks for. Without it anybody may read the metrics, which name nobody."`
	CORS          CORS    `yaml:"cors" doc:"Web pages of other origins that may use the API."`
	Limits        Limits  `yaml:"limits" doc:"What one user may ask of the API. Beyond it the answer is 429."`
}

// Limits bound what one user asks for.
type Limits struct {
	Rate           int `yaml:"rate" default:"20" min:"1" doc:"Requests a second."`
	Burst          int `yaml:"burst" default:"40" min:"1" doc:"Requests at once."`
	ExpensiveRate  int `yaml:"expensive_rate" default:"1" min:"1" doc:"Requests a second to create, delete, start or stop a webspace, to run a command or to add a domain."`
	ExpensiveBurst int `yaml:"expensive_burst" default:"10" min:"1" doc:"Of those, at once."`
}

// CORS lists origins.
type CORS struct {
	AllowedOrigins []Origin `yaml:"allowed_origins" example:"[https://dashboard.example.org]" doc:"Origins such as https://dashboard.example.org, or \"*\" for all. Without any, browsers keep other pages out."`
}

// Gateway says where the gateway is and what it takes.
type Gateway struct {
	HTTPListenAddress  Address        `yaml:"http_listen_address" default:":8081" doc:"Where the gateway takes HTTP requests."`
	TLSListenAddress   Address        `yaml:"tls_listen_address" example:":8443" doc:"Where it takes TLS connections: to pass them through, or to terminate them with the certificates of tls.provider acme or static. Without it nowhere, but for :8443 if webspaces.config_defaults.sni_passthrough is on."`
	HTTPSPort          int            `yaml:"https_port" default:"443" min:"1" max:"65535" doc:"The port of tls_listen_address as visitors see it. Without Traefik, those who come without TLS are sent there, if there are certificates."`
	ProxyProtocolFrom  []netip.Prefix `yaml:"proxy_protocol_from" example:"[198.18.0.10]" doc:"Addresses and networks of balancers that begin each connection with a PROXY header: to the gateway, and to forwarded ports."`
	HoldTimeout        time.Duration  `yaml:"hold_timeout" default:"50s" min:"1s" doc:"How long a request waits at most for its webspace. Stay below the read timeout of the proxy in front (Traefik: 60s)."`
	MaxHeldPerWebspace int            `yaml:"max_held_per_webspace" default:"1024" min:"1" doc:"How many requests may wait for one webspace."`
	MaxHeldPerSource   int            `yaml:"max_held_per_source" default:"64" min:"1" doc:"How many requests of one client address may wait."`
	MaxHeld            int            `yaml:"max_held" default:"10000" min:"1" doc:"How many requests may wait in total."`
	MaxWakes           int            `yaml:"max_wakes" default:"20" min:"1" doc:"How many webspaces visitors from one network may boot in a row. After that it is one in ten seconds."`
	MaxTCPPerSource    int            `yaml:"max_tcp_per_source" default:"64" min:"1" doc:"How many connections to forwarded ports one client address may have, and how many of TLS that is passed through."`
	TCPIdleTimeout     time.Duration  `yaml:"tcp_idle_timeout" default:"1h" min:"1s" doc:"How long nothing may come on such a connection before it is closed."`
	TrustedProxies     []netip.Prefix `yaml:"trusted_proxies" example:"[127.0.0.1, 198.18.0.0/24]" doc:"Addresses and networks whose X-Forwarded-* headers are believed. Name the proxy in front here: any other address gets at most 256 connections."`
}

// Traefik says which routes are written where.
type Traefik struct {
	Provider        string        `yaml:"provider" default:"none" enum:"kubernetes|redis|file|http|none" doc:"Where routes are written: kubernetes, redis, file, http or none."`
	Mode            string        `yaml:"mode" default:"direct" enum:"direct|inline" doc:"direct: the route of a running webspace goes straight to its instance. inline: all routes go to the gateway, always."`
	WebspacedURL    URL           `yaml:"webspaced_url" example:"http://127.0.0.1:8081" doc:"The URL at which Traefik reaches the gateway. Required with a provider."`
	WebspacedTLS    Address       `yaml:"webspaced_tls_address" example:"127.0.0.1:8443" doc:"Where Traefik reaches the gateway for TLS that is passed through. Without it the host of webspaced_url, and the port of gateway.tls_listen_address."`
	HTTPEntryPoint  string        `yaml:"http_entrypoint" default:"web" doc:"Traefik's entry point for HTTP."`
	HTTPSEntryPoint string        `yaml:"https_entrypoint" default:"websecure" doc:"Traefik's entry point for HTTPS."`
	DefaultSANs     []string      `yaml:"default_sans" example:"[webspaces.example.org, \"*.webspaces.example.org\"]" doc:"Names in the certificate of the default domains."`
	Settle          time.Duration `yaml:"settle" default:"3s" doc:"How long Traefik may take to follow a changed route."`
	IAMToken        Secret        `yaml:"iam_token" file:"yes" example:"/etc/webspaced/iam.token" replaced:"the gateway boots webspaces by itself and needs no token; remove the key" doc:"Has no effect any more."`
	File            TraefikFile   `yaml:"file" doc:"A directory that Traefik watches (provider file)."`
	Redis           TraefikRedis  `yaml:"redis" doc:"A Redis that Traefik watches (provider redis)."`
	Kubernetes      TraefikKube   `yaml:"kubernetes" doc:"Custom resources of Traefik (provider kubernetes)."`
	HTTP            TraefikHTTP   `yaml:"http" doc:"An endpoint that Traefik polls (provider http)."`
}

// TraefikFile is where provider/file writes.
type TraefikFile struct {
	Directory string `yaml:"directory" example:"/etc/traefik/dynamic" doc:"The directory of Traefik's file provider. Only files of our own are touched."`
}

// TraefikHTTP is where provider/http listens.
type TraefikHTTP struct {
	ListenAddress Address `yaml:"listen_address" default:"127.0.0.1:8082" doc:"Where Traefik polls. What is there has private keys in it: nobody else may reach it."`
}

// TraefikRedis is where provider/redis writes.
type TraefikRedis struct {
	Addr         string `yaml:"addr" example:"127.0.0.1:6379" doc:"Its address and port."`
	DB           int    `yaml:"db" default:"0" doc:"Number of the database."`
	Username     string `yaml:"username" example:"webspaced" doc:"User, if it asks for one."`
	Password     Secret `yaml:"password" file:"yes" example:"/etc/webspaced/redis.password" doc:"Password, if it asks for one."`
	TLS          bool   `yaml:"tls" default:"false" doc:"Connect with TLS."`
	CAFile       string `yaml:"ca_file" example:"/etc/webspaced/redis-ca.crt" doc:"File with the certificate of the authority that signed the server's, if that is not publicly trusted."`
	RootKey      string `yaml:"root_key" default:"traefik" doc:"First part of every key, as Traefik is told."`
	CertResolver string `yaml:"cert_resolver" example:"letsencrypt" doc:"Traefik's certificate resolver, as tls.resolver.name."`
}

// TraefikKube is where provider/kubernetes writes.
type TraefikKube struct {
	Namespace      string `yaml:"namespace" example:"webspaces" doc:"Namespace of the resources; without it that of the daemon."`
	Kubeconfig     string `yaml:"kubeconfig" example:"/etc/webspaced/kubeconfig" doc:"How the cluster is reached; without it as a pod of it."`
	Endpoints      bool   `yaml:"endpoints" default:"false" doc:"Write Endpoints as well, which Traefik 2 reads instead of EndpointSlices."`
	DefaultSecret  string `yaml:"default_secret" example:"webspaces-tls" doc:"Secret with the certificate of the default domains."`
	ClusterIssuer  string `yaml:"cluster_issuer" example:"letsencrypt" doc:"cert-manager's ClusterIssuer for custom domains."`
	Issuer         string `yaml:"issuer" example:"letsencrypt" doc:"cert-manager's Issuer for them, in the namespace; instead of cluster_issuer."`
	GatewayService string `yaml:"gateway_service" example:"webspaced" doc:"Service at which the gateway is reached, by the ports in webspaced_url and webspaced_tls_address. Without it the host of webspaced_url if that is a name of one label."`
}

// TLS says who gets certificates for custom domains.
type TLS struct {
	Provider string      `yaml:"provider" enum:"none|certmanager|acme|resolver|static" example:"acme" doc:"certmanager, acme, resolver, static or none. Without it certmanager if traefik.kubernetes.cluster_issuer or issuer is set, resolver if a name of one is, else none."`
	ACME     ACME        `yaml:"acme" doc:"An ACME authority (provider acme)."`
	Resolver TLSResolver `yaml:"resolver" doc:"Traefik's own certificate resolver (provider resolver)."`
	Static   TLSStatic   `yaml:"static" doc:"Certificates from files (provider static)."`
}

// ACME is an ACME account.
type ACME struct {
	DirectoryURL URL    `yaml:"directory_url" default:"https://acme-v02.api.letsencrypt.org/directory" doc:"The authority's directory."`
	Defaults     bool   `yaml:"default_domains" default:"true" doc:"Whether default domains get certificates, too. Without it Traefik serves them with its own."`
	Email        string `yaml:"email" example:"webmaster@example.org" doc:"Where the authority writes to."`
	Storage      string `yaml:"storage" default:"/var/lib/webspaced/acme" doc:"Directory for the account and the certificates."`
	CAFile       string `yaml:"ca_file" example:"/etc/webspaced/acme-ca.crt" doc:"File with the certificate of an authority that is not publicly trusted."`
}

// TLSResolver names a certificate resolver.
type TLSResolver struct {
	Name string `yaml:"name" example:"letsencrypt" doc:"What Traefik calls it. It obtains the certificates of default domains, too."`
}

// TLSStatic lists certificates.
type TLSStatic struct {
	Certificates []Certificate `yaml:"certificates" doc:"The certificates."`
}

// Certificate names the files of a certificate, in PEM format.
type Certificate struct {
	CertFile string `yaml:"cert_file" example:"/etc/webspaced/example.org.crt" doc:"File with the certificate and its chain."`
	KeyFile  string `yaml:"key_file" example:"/etc/webspaced/example.org.key" doc:"File with its private key."`
}
