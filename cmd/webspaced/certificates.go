package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/internal/config"
	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/acme"
	"github.com/netsoc/webspaced/tlsprovider/resolver"
	"github.com/netsoc/webspaced/tlsprovider/static"
	"github.com/netsoc/webspaced/webspace"
)

// newIssuer returns what obtains certificates, nil if nothing does, and what ends it. replaces says that there is another
// daemon, which this one is to replace.
func newIssuer(ctx context.Context, c *config.Config, replaces bool, log *slog.Logger) (tlsprovider.Issuer, func() error, error) {
	t, nothing := c.TLS, func() error { return nil }
	switch t.Provider {
	case "none":
		return nil, nothing, nil
	case "certmanager":
		issuer, err := certManager(c)
		return issuer, nothing, err
	case "resolver":
		issuer, err := resolver.New(t.Resolver.Name)
		return issuer, nothing, err
	case "static":
		var pairs []static.Pair
		for _, pair := range t.Static.Certificates {
			pairs = append(pairs, static.Pair{CertFile: pair.CertFile, KeyFile: pair.KeyFile})
		}
		issuer, err := static.New(pairs, &static.Options{Logger: log})
		if err != nil {
			return nil, nil, err
		}
		return issuer, issuer.Close, nil
	case "acme":
		issuer, err := newACME(ctx, c, replaces, log)
		if err != nil {
			return nil, nil, err
		}
		return issuer, issuer.Close, nil
	}
	return nil, nil, fmt.Errorf("there is no provider %q", t.Provider)
}

// newACME waits for a daemon that is just ending to leave its directory; one that this one replaces ends later.
func newACME(ctx context.Context, c *config.Config, replaces bool, log *slog.Logger) (*acme.Issuer, error) {
	a := c.TLS.ACME
	opts := &acme.Options{Directory: a.DirectoryURL.String(), Email: a.Email, CAFile: a.CAFile, Standby: replaces, Logger: log}
	if c.Traefik.Provider == "none" {
		// The TLS gateway answers these by itself. They need port 443 alone, and the others 80.
		opts.Challenges = []acme.Challenge{acme.HTTP01, acme.TLSALPN01}
	}
	deadline := time.Now().Add(c.Timeouts.Startup)
	for {
		issuer, err := acme.New(a.Storage, opts)
		if err == nil || !errdefs.IsUnavailable(err) || time.Now().After(deadline) || ctx.Err() != nil {
			return issuer, err
		}
		log.Info("the directory of certificates is in use", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// certify has a Manager order certificates, and members prove their domains.
func certify(opts *webspace.Options, c *config.Config, issuer tlsprovider.Issuer) error {
	opts.Issuer = issuer
	opts.IssueDefault = c.TLS.Provider == "static" || c.TLS.Provider == "acme" && c.TLS.ACME.Defaults
	proof, err := webspace.NewDomainProof(&webspace.ProofOptions{
		Key: []byte(c.Webspaces.Domains.ProofKey.Reveal()), Resolver: string(c.Webspaces.Domains.Resolver),
	})
	if err != nil {
		return fmt.Errorf("webspaces.domains: %w", err)
	}
	opts.VerifyDomain, opts.DomainRecheck, opts.MaxDomains = proof.Verify, c.Webspaces.Domains.Recheck, c.Webspaces.Domains.Max
	if opts.MaxDomains == 0 {
		opts.VerifyDomain = nil // to the Manager, zero means its default
	}
	return nil
}

// tlsOptions are those of the TLS gateway. TLS ends there if the issuer has the certificates.
func tlsOptions(c *config.Config, issuer tlsprovider.Issuer, d *daemon) *proxy.TLSGatewayOptions {
	opts := &proxy.TLSGatewayOptions{
		Holds: d.holds, HoldTimeout: c.Gateway.HoldTimeout, Limits: tcpLimits(c), IdleTimeout: c.Gateway.TCPIdleTimeout,
		Logger: d.log,
	}
	if holder, ok := issuer.(tlsprovider.Holder); ok {
		opts.TLSConfig = &tls.Config{GetCertificate: holder.GetCertificate}
	}
	return opts
}
