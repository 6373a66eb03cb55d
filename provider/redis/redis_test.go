package redis_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/kvtools/valkeyrie/store"
	client "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/config/kv"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/providertest"
	"github.com/netsoc/webspaced/provider/redis"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func TestProvider(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	kinds := map[string][]providertest.CertificateKind{"HTTPS": {providertest.Resolver, providertest.PEM}}
	for name, opts := range map[string]redis.Options{
		"HTTP": {},
		"HTTPS": {
			RootKey: "some/root*", HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le",
			CertDomains: []string{"*.example.org", "example.org"}, ChallengeURL: "http://gateway:8081",
		},
	} {
		t.Run(name, func(t *testing.T) {
			providertest.Run(t, func(t *testing.T) providertest.Harness {
				require.NoError(t, db.FlushDB(t.Context()).Err())
				return harness(t, server, db, opts, kinds[name]...)
			})
		})
	}
}

// dial returns a client of the test's own.
func dial(t testing.TB, server *testbed.RedisServer) *client.Client {
	db := client.NewClient(&client.Options{Addr: server.Address})
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func open(t testing.TB, server *testbed.RedisServer, opts redis.Options) *redis.Provider {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	p, err := redis.New(server.Address, &opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func harness(
	t *testing.T, server *testbed.RedisServer, db *client.Client, opts redis.Options, certificates ...providertest.CertificateKind,
) providertest.Harness {
	root := opts.RootKey
	if root == "" {
		root = "traefik"
	}
	ctx := context.Background()
	set := func(path, value string) func(string, string) error {
		return func(deployment, route string) error {
			return db.Set(ctx, root+"/"+strings.NewReplacer("D", deployment, "R", route).Replace(path), value, 0).Err()
		}
	}
	del := func(path string) func(string, string) error {
		return func(deployment, route string) error {
			n, err := db.Del(ctx, root+"/"+strings.NewReplacer("D", deployment, "R", route).Replace(path)).Result()
			if err == nil && n == 0 {
				err = fmt.Errorf("no key %s", path)
			}
			return err
		}
	}
	list := func(path string) func(string, string) error {
		return func(deployment, route string) error {
			key := root + "/" + strings.NewReplacer("D", deployment, "R", route).Replace(path)
			if err := db.Del(ctx, key).Err(); err != nil {
				return err
			}
			return db.RPush(ctx, key, "a").Err()
		}
	}
	const router = "http/routers/D.R.http.a.example.org"
	foreign := map[string]string{
		root + "/http/routers/mine/rule":                             "Host(`foreign.example.org`)",
		root + "/http/routers/mine/service":                          "mine",
		root + "/http/services/mine/loadBalancer/servers/0/url":      "http://198.18.0.99:80",
		root + "/http/routers/one/rule":                              "Host(`foreign.example.org`)",
		root + "/http/routers/ones.ws-u1/rule":                       "Host(`foreign.example.org`)",
		root + "/http/routers/one-ws-u1.http.a.example.org/rule":     "Host(`foreign.example.org`)",
		root + "/http/routers/one.ws_u1/rule":                        "Host(`foreign.example.org`)",
		root + "/http/routers/two.ws-u1.http.a.example.org/priority": "50",
		root + "/nothing/routers/one.ws-u1.http.a.example.org/rule":  "no section of Traefik's",
		root + "/one.ws-u1":                                          "too short",
		root + "2/http/routers/one.ws-u1.http.a.example.org/rule":    "of another root",
		"Traefik/http/routers/one.ws-u1.http.a.example.org/rule":     "of another root",
		root:        "the root itself",
		"one.ws-u1": "elsewhere",
		"http/routers/one.ws-u1.http.a.example.org/rule": "elsewhere",
	}
	return providertest.Harness{
		Open: func(deployment string) (provider.Provider, error) {
			opts := opts
			opts.Deployment = deployment
			return open(t, server, opts), nil
		},
		Lookup: func(host provider.Host) (string, error) {
			c, err := configuration(ctx, db, root)
			return traefiktest.Backend(c, host.String()), err
		},
		Certificates: certificates,
		HasCertificate: func(certificate provider.Certificate) (bool, error) {
			c, err := configuration(ctx, db, root)
			return traefiktest.HasCertificate(c, certificate), err
		},
		Damage: map[string]func(string, string) error{
			"backend edited":    set("http/services/D.R/loadBalancer/servers/0/url", "http://198.18.0.66:80"),
			"second server":     set("http/services/D.R/loadBalancer/servers/1/url", "http://198.18.0.66:80"),
			"rule edited":       set(router+"/rule", "Host(`z.example.org`)"),
			"priority edited":   set(router+"/priority", "1000"),
			"poisoned":          set("http/services/D.R/loadBalancer/passHostHeader", "notabool"),
			"unknown field":     set(router+"/nonsense", "1"),
			"rule gone":         del(router + "/rule"),
			"service gone":      del("http/services/D.R/loadBalancer/servers/0/url"),
			"emptied":           set(router+"/rule", ""),
			"list":              list(router + "/rule"),
			"another router":    set("http/routers/D.R.x/rule", "Host(`z.example.org`)"),
			"TCP router":        set("tcp/routers/D.R.tls.z.example.org/rule", "HostSNI(`z.example.org`)"),
			"middleware":        set("http/middlewares/D.R/addPrefix/prefix", "/x"),
			"plugin":            set("http/middlewares/D.R/plugin/x/0", "/x"),
			"plugin and scalar": set("http/middlewares/D.R/plugin/x", "/x"),
			"case of the names": set("HTTP/Routers/ONE.WS-U1.http.a.example.org/middlewares", "evil"),
			"case beyond ASCII": set("http/routers/D.w\u017f-u1.http.a.example.org/middlewares", "evil"),
			"empty parts":       set("/http//routers/D.R.http.a.example.org/middlewares", "evil"),
			"certificate":       set("tls/certificates/D.R.a.example.org/certFile", "-----BEGIN X"),
		},
		WriteForeign: func(string, string) error {
			return db.MSet(ctx, foreign).Err()
		},
		ReadForeign: func() ([]byte, error) {
			var all []byte
			for _, key := range slices.Sorted(maps.Keys(foreign)) {
				value, err := db.Get(ctx, key).Result()
				if err != nil {
					return nil, fmt.Errorf("%s: %w", key, err)
				}
				all = fmt.Appendf(all, "%s: %s\n", key, value)
			}
			return all, nil
		},
	}
}

// stored reads keys as Traefik does: first all names, then all values.
func stored(ctx context.Context, db *client.Client, root string) ([]*store.KVPair, error) {
	var keys []string
	pattern := strings.NewReplacer("*", `\*`).Replace(root) + "*" // Traefik's own is not quoted
	for iterator := db.Scan(ctx, 0, pattern, 1000).Iterator(); iterator.Next(ctx); {
		keys = append(keys, iterator.Val())
	}
	if len(keys) == 0 {
		return nil, nil
	}
	values, err := db.MGet(ctx, keys...).Result()
	var pairs []*store.KVPair
	for i, value := range values {
		if text, _ := value.(string); text != "" && keys[i] != root {
			pairs = append(pairs, &store.KVPair{Key: keys[i], Value: []byte(text)})
		}
	}
	return pairs, err
}

// configuration is what Traefik makes of the keys.
func configuration(ctx context.Context, db *client.Client, root string) (*dynamic.Configuration, error) {
	c := &dynamic.Configuration{}
	pairs, err := stored(ctx, db, root)
	if err != nil || len(pairs) == 0 {
		return c, err
	}
	return c, kv.Decode(pairs, c, root)
}

func route(t testing.TB, name, backend string, hosts ...string) provider.Route {
	t.Helper()
	r := provider.Route{Name: name, Backend: backend}
	for _, h := range hosts {
		host, err := provider.ParseHost(h)
		require.NoError(t, err)
		r.Hosts = append(r.Hosts, host)
	}
	require.NoError(t, r.Validate())
	return r
}

func put(routes ...provider.Route) provider.Changes { return provider.Changes{Put: routes} }

func TestOptions(t *testing.T) {
	for name, opts := range map[string]redis.Options{
		"dot in deployment":   {Deployment: "a.b"},
		"space in entrypoint": {HTTPEntryPoint: "we b"},
		"resolver alone":      {CertResolver: "le"},
		"domains alone":       {HTTPSEntryPoint: "websecure", CertDomains: []string{"example.org"}},
		"root ends in slash":  {RootKey: "traefik/"},
		"root is a slash":     {RootKey: "/"},
		"database":            {DB: -1},
		"timeout":             {Timeout: -1},
	} {
		_, err := redis.New("127.0.0.1:6379", &opts)
		require.Truef(t, errdefs.IsInvalidArgument(err), "%s: %v", name, err)
	}
	_, err := redis.New("127.0.0.1", nil)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	p, err := redis.New("127.0.0.1:6379", nil)
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
}

func TestContent(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	p := open(t, server, redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"})
	require.NoError(t, p.Apply(t.Context(), put(
		route(t, "ws-u1", "http://198.18.0.1:80", "alice.example.org"),
		route(t, "ws-u2", "tcp://[2001:db8::2]:443", "bob.example.org"))))
	pairs, err := stored(t.Context(), db, "traefik")
	require.NoError(t, err)
	have := map[string]string{}
	for _, pair := range pairs {
		have[pair.Key] = string(pair.Value)
	}
	require.Equal(t, map[string]string{
		"traefik/http/middlewares/webspaced/addPrefix/prefix":                           "/",
		"traefik/http/routers/webspaced.ws-u1.http.alice.example.org/entryPoints":       "web",
		"traefik/http/routers/webspaced.ws-u1.http.alice.example.org/service":           "webspaced.ws-u1",
		"traefik/http/routers/webspaced.ws-u1.http.alice.example.org/rule":              "Host(`alice.example.org`)",
		"traefik/http/routers/webspaced.ws-u1.http.alice.example.org/priority":          "50",
		"traefik/http/routers/webspaced.ws-u1.https.alice.example.org/entryPoints":      "websecure",
		"traefik/http/routers/webspaced.ws-u1.https.alice.example.org/service":          "webspaced.ws-u1",
		"traefik/http/routers/webspaced.ws-u1.https.alice.example.org/rule":             "Host(`alice.example.org`)",
		"traefik/http/routers/webspaced.ws-u1.https.alice.example.org/priority":         "50",
		"traefik/http/routers/webspaced.ws-u1.https.alice.example.org/tls/certResolver": "le",
		"traefik/http/services/webspaced.ws-u1/loadBalancer/servers/0/url":              "http://198.18.0.1:80",
		"traefik/http/services/webspaced.ws-u1/loadBalancer/passHostHeader":             "true",
		"traefik/tcp/routers/webspaced.ws-u2.tls.bob.example.org/entryPoints":           "websecure",
		"traefik/tcp/routers/webspaced.ws-u2.tls.bob.example.org/service":               "webspaced.ws-u2",
		"traefik/tcp/routers/webspaced.ws-u2.tls.bob.example.org/rule":                  "HostSNI(`bob.example.org`)",
		"traefik/tcp/routers/webspaced.ws-u2.tls.bob.example.org/priority":              "50",
		"traefik/tcp/routers/webspaced.ws-u2.tls.bob.example.org/tls/passthrough":       "true",
		"traefik/tcp/services/webspaced.ws-u2/loadBalancer/servers/0/address":           "[2001:db8::2]:443",
	}, have)
}

// TestWrites: a change writes what differs, each of which has Traefik read everything anew.
func TestWrites(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	p := open(t, server, redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"})
	requireStands(t, p)
	listener := db.PSubscribe(t.Context(), "__keyspace*:*")
	defer listener.Close()
	_, err := listener.Receive(t.Context())
	require.NoError(t, err)
	events := func() (keys []string) {
		require.NoError(t, db.Set(t.Context(), "end", "", 0).Err())
		for {
			message, err := listener.ReceiveMessage(t.Context())
			require.NoError(t, err)
			key := strings.TrimPrefix(message.Channel, "__keyspace@0__:")
			if key == "end" {
				return keys
			}
			keys = append(keys, message.Payload+" "+key)
		}
	}
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	b := route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a, b)))
	require.Len(t, events(), 22)
	requireStands(t, p, a, b)
	require.NoError(t, p.Apply(t.Context(), put(a, b)))
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u3"}}))
	require.Empty(t, events())

	for _, by := range []*redis.Provider{p, open(t, server, redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le"})} {
		a.Backend = "http://gateway:8081"
		require.NoError(t, by.Apply(t.Context(), put(a, b)))
		require.Equal(t, []string{"set traefik/http/services/webspaced.ws-u1/loadBalancer/servers/0/url"}, events())
		a.Backend = "http://198.18.0.1:80"
		require.NoError(t, by.Apply(t.Context(), put(a)))
		require.Equal(t, []string{"set traefik/http/services/webspaced.ws-u1/loadBalancer/servers/0/url"}, events())
	}
}

// TestTwins: a Provider that knows what it wrote finds out what another one did.
func TestTwins(t *testing.T) {
	server := testbed.Redis(t)
	p, twin := open(t, server, redis.Options{}), open(t, server, redis.Options{})
	a, more := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org"), route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org", "b.example.org")
	requireStands(t, p)
	require.NoError(t, p.Apply(t.Context(), put(a)))
	require.NoError(t, twin.Apply(t.Context(), put(more)))
	requireStands(t, p, more)
	require.NoError(t, p.Apply(t.Context(), put(a)))
	requireStands(t, twin, a)
	require.NoError(t, twin.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}))
	require.NoError(t, p.Apply(t.Context(), put(a)))
	requireStands(t, p, a)
	require.NoError(t, twin.Apply(t.Context(), put(more)))
	require.NoError(t, p.Apply(t.Context(), provider.Changes{Delete: []string{"ws-u1"}}), "all of it, at once")
	requireStands(t, twin)
}

// FuzzStored has any key and value beside those of a route, and any value in one of its keys: the route is read as it was,
// or as one that differs, and is whole again after a put. Keys of others stay.
func FuzzStored(f *testing.F) {
	const rule = "traefik/http/routers/webspaced.ws-u1.http.a.example.org/rule"
	f.Add(rule, "Host(`z.example.org`)")
	f.Add(rule, "")
	f.Add("traefik/HTTP//Routers/WEBSPACED.ws-u1.http.a.example.org/Rule", "x")
	f.Add("traefik/http/routers/web\u017fpaced.ws-u1.http.a.example.org/rule", "x")
	f.Add("traefik/tls/certificates/webspaced.ws-u1.a.example.org/certFile", "x")
	f.Add("traefik/http/middlewares/webspaced.ws-u1/plugin/a", "x")
	f.Add("traefik/http/middlewares/webspaced.ws-u1x", "x")
	f.Add("traefik/http/services/mine/loadBalancer/servers/0/url", "x")
	f.Add("traefik/http/services/webspaced.ws-u2/loadBalancer/servers/0/url", "x")
	f.Add("other\xff\x00*[", "\xff")
	server := testbed.Redis(f)
	db := dial(f, server)
	a := route(f, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	f.Fuzz(func(t *testing.T, key, value string) {
		if key == "" {
			return
		}
		require.NoError(t, db.FlushDB(t.Context()).Err())
		p := open(t, server, redis.Options{})
		require.NoError(t, p.Apply(t.Context(), put(a)))
		before, err := configuration(t.Context(), db, "traefik")
		require.NoError(t, err)
		require.NoError(t, db.Set(t.Context(), key, value, 0).Err())
		routes, err := p.Routes(t.Context())
		require.NoError(t, err)
		ours := !provider.Plan([]provider.Route{a}, routes).Empty()
		require.NoError(t, p.Apply(t.Context(), provider.Plan([]provider.Route{a}, routes)))
		requireStands(t, p, a)
		if ours {
			after, err := configuration(t.Context(), db, "traefik")
			require.NoError(t, err)
			require.Equal(t, before, after)
		} else {
			have, err := db.Get(t.Context(), key).Result()
			require.NoError(t, err)
			if key != sentinel {
				require.Equal(t, value, have)
			}
		}
	})
}
