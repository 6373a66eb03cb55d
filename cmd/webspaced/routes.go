package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/netsoc/webspaced/internal/config"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/file"
	httpprovider "github.com/netsoc/webspaced/provider/http"
	"github.com/netsoc/webspaced/provider/redis"
)

// deployment marks what this daemon writes where others may write, too: several daemons, each with instances of its own,
// may share a store.
func deployment(c *config.Config) string { return "webspaced-" + c.Webspaces.InstancePrefix + "u" }

// newRoutes returns what writes routes, nil if nothing does, and what ends it. It adds a server to d if Traefik comes for them.
func newRoutes(ctx context.Context, c *config.Config, d *daemon) (provider.Provider, func() error, error) {
	t, nothing := c.Traefik, func() error { return nil }
	var challenges string // where the gateway answers a certificate authority for us
	if c.TLS.Provider == "acme" {
		challenges = t.WebspacedURL.Origin()
	}
	var resolver string
	var domains []string
	if c.TLS.Provider == "resolver" {
		resolver, domains = c.TLS.Resolver.Name, t.DefaultSANs
	}
	switch t.Provider {
	case "none":
		return nil, nothing, nil
	case "file":
		p, err := file.New(t.File.Directory, &file.Options{
			Deployment: deployment(c), HTTPEntryPoint: t.HTTPEntryPoint, HTTPSEntryPoint: t.HTTPSEntryPoint,
			CertResolver: resolver, CertDomains: domains, ChallengeURL: challenges,
		})
		return p, nothing, err
	case "http":
		p, err := httpprovider.New(&httpprovider.Options{
			Deployment: deployment(c), HTTPEntryPoint: t.HTTPEntryPoint, HTTPSEntryPoint: t.HTTPSEntryPoint,
			CertResolver: resolver, CertDomains: domains, ChallengeURL: challenges,
		})
		if err != nil {
			return nil, nil, err
		}
		place, err := newPlace(ctx, "traefik.http.listen_address", string(t.HTTP.ListenAddress), d.log)
		if err != nil {
			return nil, nil, err
		}
		d.others = append(d.others, routesServer(p, place, d.log))
		return p, func() error { place.close(); return nil }, nil
	case "redis":
		secure, err := redisTLS(c)
		if err != nil {
			return nil, nil, err
		}
		p, err := redis.New(t.Redis.Addr, &redis.Options{
			Username: t.Redis.Username, Password: t.Redis.Password.Reveal(), DB: t.Redis.DB, TLS: secure, RootKey: t.Redis.RootKey,
			Deployment: deployment(c), HTTPEntryPoint: t.HTTPEntryPoint, HTTPSEntryPoint: t.HTTPSEntryPoint,
			CertResolver: resolver, CertDomains: domains, ChallengeURL: challenges, Logger: d.log,
		})
		if err != nil {
			return nil, nil, err
		}
		return p, p.Close, nil
	case "kubernetes":
		p, err := kubernetesRoutes(c)
		return p, nothing, err
	}
	return nil, nil, fmt.Errorf("there is no provider %q", t.Provider)
}

// routesServer serves Traefik, which comes again and again.
func routesServer(h http.Handler, at *place, log *slog.Logger) server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return server{
		what: "routes for Traefik", place: at, cut: "Traefik was cut off",
		serve: s.Serve,
		shutdown: func(ctx context.Context) error {
			err := s.Shutdown(ctx)
			if err != nil {
				_ = s.Close()
			}
			return err
		},
	}
}

func redisTLS(c *config.Config) (*tls.Config, error) {
	r := c.Traefik.Redis
	if !r.TLS {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return nil, fmt.Errorf("redis.addr: %w", err)
	}
	secure := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return nil, fmt.Errorf("redis.ca_file: %w", err)
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis.ca_file: %w", errors.New("there is no certificate in it"))
		}
	}
	return secure, nil
}
