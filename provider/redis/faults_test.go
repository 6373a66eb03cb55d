package redis_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/kvtools/valkeyrie/store"
	client "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"github.com/traefik/traefik/v2/pkg/config/kv"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/internal/traefiktest"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/redis"
)

const sentinel = "traefik/http/middlewares/webspaced/addPrefix/prefix"

// requireStands requires that these routes, and no others, stand.
func requireStands(t *testing.T, p *redis.Provider, want ...provider.Route) {
	t.Helper()
	have, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.True(t, provider.Plan(want, have).Empty(), "%v", have)
}

// requireFailed requires that all of Apply failed with an error of a class.
func requireFailed(t *testing.T, p *redis.Provider, class func(error) bool) {
	t.Helper()
	err := p.Apply(t.Context(), put(route(t, "ws-u9", "http://198.18.0.9:80", "z.example.org")))
	require.Truef(t, class(err), "%v", err)
	require.Equal(t, 1, countClasses(err), "%v", err)
}

func countClasses(err error) (n int) {
	for _, is := range []func(error) bool{
		errdefs.IsUnavailable, errdefs.IsPermissionDenied, errdefs.IsInvalidArgument, errdefs.IsAlreadyExists, errdefs.IsNotFound,
	} {
		if is(err) {
			n++
		}
	}
	return n
}

func TestEmptied(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	p := open(t, server, redis.Options{})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	for what, empty := range map[string]func(){
		"flushed":         func() { require.NoError(t, db.FlushAll(t.Context()).Err()) },
		"restarted empty": func() { server.Restart(t) },
	} {
		require.NoError(t, p.Apply(t.Context(), put(a)), what)
		requireStands(t, p, a)
		empty()
		// The next change comes before anybody has looked: what makes Traefik see the last removal is there again.
		require.NoError(t, p.Apply(t.Context(), put(a)), what)
		require.Equal(t, "/", db.Get(t.Context(), sentinel).Val(), what)
		empty()
		requireStands(t, p)
		require.Equal(t, "/", db.Get(t.Context(), sentinel).Val(), what)
	}
}

func TestAway(t *testing.T) {
	server := testbed.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	p := open(t, server, redis.Options{})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	server.Kill()
	_, err := p.Routes(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	err = p.Apply(t.Context(), put(a))
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	_, ofRoute := errors.AsType[*provider.RouteError](err)
	require.False(t, ofRoute, "nothing at all can be done: %v", err)
	server.Restart(t)
	requireStands(t, p, a)
}

// TestNotifications: Redis forgets to tell Traefik of changes when it starts again.
func TestNotifications(t *testing.T) {
	server := testbed.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	db := dial(t, server)
	p := open(t, server, redis.Options{})
	flags := func() string {
		return db.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]
	}
	requireStands(t, p)
	require.Equal(t, "AK", flags())

	server.Restart(t)
	require.Empty(t, flags())
	// Whoever listens by now has missed something.
	listener := db.PSubscribe(t.Context(), "__keyspace*:traefik*")
	defer listener.Close()
	_, err := listener.Receive(t.Context())
	require.NoError(t, err)
	requireStands(t, p)
	message, err := listener.ReceiveMessage(t.Context())
	require.NoError(t, err)
	require.Equal(t, "__keyspace@0__:"+sentinel, message.Channel)

	for set, want := range map[string]string{"Ex": "AKE", "Kg$": "g$K", "K": "AK", "E$g": "AKE", "KEA": "AKE"} {
		require.NoError(t, db.ConfigSet(t.Context(), "notify-keyspace-events", set).Err())
		requireStands(t, p)
		require.Equal(t, want, flags(), set)
	}
}

// TestTraefikIsToldAgain: after a restart of Redis that keeps its keys and forgets its settings, Traefik follows again.
func TestTraefikIsToldAgain(t *testing.T) {
	server := testbed.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	db := dial(t, server)
	p := open(t, server, redis.Options{HTTPEntryPoint: "web"})
	front := testbed.Traefik(t, "--providers.redis.endpoints="+server.Address, "--providers.providersthrottleduration=10ms")
	follows := func(name, host string) {
		t.Helper()
		require.NoError(t, p.Apply(t.Context(), put(route(t, name, "http://127.0.0.1:1", host))))
		require.Eventually(t, func() bool { return traefiktest.Status(t, front.Web, host) == 502 }, 30*time.Second, 10*time.Millisecond)
	}
	follows("ws-u1", "a.example.org")
	server.Restart(t)
	requireStands(t, p, route(t, "ws-u1", "http://127.0.0.1:1", "a.example.org"))
	follows("ws-u2", "b.example.org")

	// Its connection stays, and the setting is gone: what is written meanwhile it sees with the next look at the store.
	require.NoError(t, db.ConfigSet(t.Context(), "notify-keyspace-events", "").Err())
	require.NoError(t, p.Apply(t.Context(), put(route(t, "ws-u3", "http://127.0.0.1:1", "c.example.org"))))
	_, err := p.Routes(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool { return traefiktest.Status(t, front.Web, "c.example.org") == 502 }, 30*time.Second, 10*time.Millisecond)
}

func TestHangs(t *testing.T) {
	server := testbed.Redis(t)
	p := open(t, server, redis.Options{Timeout: 100 * time.Millisecond})
	patient := open(t, server, redis.Options{Timeout: time.Minute})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, patient.Apply(t.Context(), put(a)))
	slept := make(chan error, 1)
	go func() {
		sleeper := client.NewClient(&client.Options{Addr: server.Address, ReadTimeout: time.Minute})
		defer sleeper.Close()
		slept <- sleeper.Do(context.WithoutCancel(t.Context()), "DEBUG", "SLEEP", "3").Err()
	}()
	require.Eventually(t, func() bool {
		_, err := p.Routes(t.Context())
		return errdefs.IsUnavailable(err)
	}, 10*time.Second, time.Millisecond)
	requireFailed(t, p, errdefs.IsUnavailable)

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := patient.Routes(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, patient.Apply(ctx, put(a)), context.DeadlineExceeded)
	select {
	case <-slept:
		t.Fatal("the calls lasted as long as Redis' sleep")
	default:
	}
	require.NoError(t, <-slept)
	requireStands(t, p, a)
}

func TestFull(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	p := open(t, server, redis.Options{})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	requireStands(t, p)
	require.NoError(t, p.Apply(t.Context(), put(a)))
	require.NoError(t, db.ConfigSet(t.Context(), "maxmemory", "1").Err())
	requireFailed(t, p, errdefs.IsUnavailable)
	requireStands(t, p, a)
	require.NoError(t, p.Apply(t.Context(), put(a)), "nothing is to be written")
	require.NoError(t, db.ConfigSet(t.Context(), "maxmemory", "0").Err())
	b := route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	require.NoError(t, p.Apply(t.Context(), put(b)))
	requireStands(t, p, a, b)
}

func TestReadOnlyReplica(t *testing.T) {
	server := testbed.Redis(t)
	p := open(t, server, redis.Options{})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	host, port, _ := strings.Cut(server.Address, ":")
	replica := testbed.Redis(t, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	require.NoError(t, dial(t, server).ConfigSet(t.Context(), "repl-diskless-sync-delay", "0").Err())
	of := open(t, replica, redis.Options{})
	require.Eventually(t, func() bool {
		routes, err := of.Routes(t.Context())
		return err == nil && provider.Plan([]provider.Route{a}, routes).Empty()
	}, 30*time.Second, 20*time.Millisecond)
	requireFailed(t, of, errdefs.IsUnavailable)
	require.NoError(t, of.Apply(t.Context(), put(a)), "nothing is to be written")
}

func TestAccess(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	acl := func(rules ...any) {
		t.Helper()
		require.NoError(t, db.Do(t.Context(), append([]any{"ACL", "SETUSER"}, rules...)...).Err())
	}
	// What the documentation of Options names.
	acl("web", "on", ">secret", "~traefik/*", "+scan", "+mget", "+set", "+mset", "+del", "+multi", "+exec", "+config|get", "+config|set")
	acl("noconfig", "on", ">secret", "~traefik/*", "+scan", "+mget", "+set", "+mset", "+del", "+multi", "+exec")
	acl("reader", "on", ">secret", "~traefik/*", "+scan", "+mget", "+config|get", "+config|set")
	acl("elsewhere", "on", ">secret", "~other/*", "+@all")

	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	web := open(t, server, redis.Options{Username: "web", Password: "secret"})
	requireStands(t, web)
	require.NoError(t, web.Apply(t.Context(), put(a)))
	requireStands(t, web, a)

	// Without the right to see the settings, it works and says what it can not see to.
	var warnings strings.Builder
	noconfig, err := redis.New(server.Address, &redis.Options{
		Username: "noconfig", Password: "secret", Logger: slog.New(slog.NewTextHandler(&warnings, nil)),
	})
	require.NoError(t, err)
	defer noconfig.Close()
	requireStands(t, noconfig, a)
	require.Contains(t, warnings.String(), "notify-keyspace-events")

	reader := open(t, server, redis.Options{Username: "reader", Password: "secret"})
	requireStands(t, reader, a)
	requireFailed(t, reader, errdefs.IsPermissionDenied)

	elsewhere := open(t, server, redis.Options{Username: "elsewhere", Password: "secret"})
	_, err = elsewhere.Routes(t.Context())
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)

	for _, opts := range []redis.Options{{Username: "web", Password: "wrong"}, {Username: "nobody", Password: "secret"}} {
		wrong := open(t, server, opts)
		_, err := wrong.Routes(t.Context())
		require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
		require.NotContains(t, err.Error(), opts.Password)
		requireFailed(t, wrong, errdefs.IsPermissionDenied)
	}
}

func TestPassword(t *testing.T) {
	server := testbed.Redis(t, "--requirepass", "secret")
	p := open(t, server, redis.Options{Password: "secret", DB: 3})
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	requireStands(t, p, a)
	requireStands(t, open(t, server, redis.Options{Password: "secret"})) // another database
	for _, opts := range []redis.Options{{}, {Password: "wrong"}} {
		wrong := open(t, server, opts)
		_, err := wrong.Routes(t.Context())
		require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
		requireFailed(t, wrong, errdefs.IsPermissionDenied)
	}
}

func TestTLS(t *testing.T) {
	certFile, keyFile, roots := selfSigned(t)
	server := testbed.Redis(t, "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-auth-clients", "no")
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	p := open(t, server, redis.Options{TLS: &tls.Config{RootCAs: roots}})
	require.NoError(t, p.Apply(t.Context(), put(a)))
	requireStands(t, p, a)
	for what, opts := range map[string]redis.Options{
		"nobody is trusted": {TLS: &tls.Config{}},
		"another name":      {TLS: &tls.Config{RootCAs: roots, ServerName: "redis.example.org"}},
		"plain":             {Timeout: time.Second},
	} {
		wrong := open(t, server, opts)
		_, err := wrong.Routes(t.Context())
		require.Truef(t, errdefs.IsUnavailable(err), "%s: %v", what, err)
		requireFailed(t, wrong, errdefs.IsUnavailable)
	}
}

func selfSigned(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "redis.crt"), filepath.Join(dir, "redis.key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	require.NoError(t, os.WriteFile(certFile, certPEM, 0o644))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	roots = x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(certPEM))
	return certFile, keyFile, roots
}

// TestPoison: keys of others that Traefik can not read are named, and stay.
func TestPoison(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	var warnings strings.Builder
	p, err := redis.New(server.Address, &redis.Options{Logger: slog.New(slog.NewTextHandler(&warnings, nil))})
	require.NoError(t, err)
	defer p.Close()
	a := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	require.NoError(t, p.Apply(t.Context(), put(a)))
	require.NoError(t, db.MSet(t.Context(),
		"traefik/http/routers/mine/rule", "Path",
		"traefik/http/routers/mine/priority", "7",
		"traefik/http/routers/mine/tls", "true",
		"traefik/tls/stores/default/defaultCertificate/certFile", "x",
		"traefik2/http/routers/mine/priority", "not ours",
		"traefik/other/routers/mine/priority", "not Traefik's",
	).Err())
	requireStands(t, p, a)
	require.NotContains(t, warnings.String(), "Traefik can not read")
	for key, value := range map[string]string{
		"traefik/http/services/theirs/loadBalancer/passHostHeader": "notabool",
		"traefik/HTTP//routers/Theirs/priority":                    "high",
		"traefik/tcp/services/theirs/nonsense":                     "1",
		"traefik/https/x":                                          "1",
		"traefik/udp":                                              "1",
		"traefik/http/middlewares/theirs/plugin/a":                 "1",
		"traefik/http/middlewares/webspaced/nonsense":              "1",
	} {
		warnings.Reset()
		require.NoError(t, db.Set(t.Context(), key, value, 0).Err())
		if key == "traefik/http/middlewares/theirs/plugin/a" { // and a key below it: a contradiction
			require.NoError(t, db.Set(t.Context(), key+"/b", value, 0).Err())
		}
		requireStands(t, p, a)
		c, err := configuration(t.Context(), db, "traefik")
		if err != nil {
			require.Contains(t, warnings.String(), "Traefik can not read", key)
			require.Contains(t, warnings.String(), key)
		} else {
			require.Equal(t, a.Backend, traefiktest.Backend(c, "a.example.org"), key)
		}
		require.NoError(t, db.Del(t.Context(), key, key+"/b").Err())
	}
}

// TestHalfRead: Traefik reads the names of keys first, then all values at once. Of keys that are written between the two
// it may see any: whichever it sees, it can read, the other routes are there, and so is the one that changes if it keeps
// its keys.
func TestHalfRead(t *testing.T) {
	server := testbed.Redis(t)
	db := dial(t, server)
	opts := redis.Options{HTTPEntryPoint: "web", HTTPSEntryPoint: "websecure", CertResolver: "le", ChallengeURL: "http://gateway:8081"}
	p := open(t, server, opts)
	other := route(t, "ws-u2", "http://198.18.0.2:80", "b.example.org")
	web := route(t, "ws-u1", "http://198.18.0.1:80", "a.example.org")
	gateway := route(t, "ws-u1", "http://gateway:8081", "a.example.org")
	more := route(t, "ws-u1", "http://198.18.0.1:80", "a.example", "a.example.org")
	more.Certificates = []provider.Certificate{{Host: more.Hosts[0], Chain: "-----BEGIN A", Key: "-----BEGIN B"}}
	tcp := route(t, "ws-u1", "tcp://198.18.0.1:443", "a.example.org")
	for _, step := range []struct {
		from, to *provider.Route
		served   bool // throughout
	}{
		{nil, &web, false}, {&web, &gateway, true}, {&gateway, &more, true}, {&more, &web, true}, {&web, &tcp, false},
		{&tcp, &more, false}, {&more, nil, false},
	} {
		require.NoError(t, db.FlushDB(t.Context()).Err())
		require.NoError(t, p.Apply(t.Context(), put(other)))
		if step.from != nil {
			require.NoError(t, p.Apply(t.Context(), put(*step.from)))
		}
		before, err := stored(t.Context(), db, "traefik")
		require.NoError(t, err)
		changes := provider.Changes{Delete: []string{"ws-u1"}}
		if step.to != nil {
			changes = put(*step.to)
		}
		require.NoError(t, p.Apply(t.Context(), changes))
		after, err := stored(t.Context(), db, "traefik")
		require.NoError(t, err)

		var stay, fresh []*store.KVPair
		for _, pair := range after {
			if slices.ContainsFunc(before, func(b *store.KVPair) bool { return b.Key == pair.Key }) {
				stay = append(stay, pair)
			} else {
				fresh = append(fresh, pair)
			}
		}
		views := [][]*store.KVPair{stay}
		slices.SortFunc(fresh, func(a, b *store.KVPair) int { return strings.Compare(a.Key, b.Key) })
		for i := range fresh {
			views = append(views,
				append(slices.Clone(stay), fresh[:i+1]...),                       // the first ones
				append(slices.Clone(stay), fresh[i:]...),                         // the last ones
				append(slices.Clone(stay), fresh[i]),                             // one
				append(append(slices.Clone(stay), fresh[:i]...), fresh[i+1:]...)) // all but one
		}
		for _, view := range views {
			c := &dynamic.Configuration{}
			require.NoError(t, kv.Decode(view, c, "traefik"))
			require.Equal(t, other.Backend, traefiktest.Backend(c, "b.example.org"))
			backend := traefiktest.Backend(c, "a.example.org")
			if step.served {
				require.Equal(t, step.to.Backend, backend)
			} else if step.to != nil {
				require.Contains(t, []string{"", step.to.Backend}, backend)
			}
		}
	}
}
