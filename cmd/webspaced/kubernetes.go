package main

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/rest"

	"github.com/netsoc/webspaced/internal/config"
	"github.com/netsoc/webspaced/provider"
	"github.com/netsoc/webspaced/provider/kubernetes"
	"github.com/netsoc/webspaced/tlsprovider"
	"github.com/netsoc/webspaced/tlsprovider/certmanager"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/kubeports"
)

// cluster returns how the API server is reached, and the namespace that all of ours is in.
func cluster(c *config.Config) (*rest.Config, string, error) {
	k := c.Traefik.Kubernetes
	api, namespace, err := kubernetes.Config(k.Kubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("kubernetes: %w", err)
	}
	if k.Namespace != "" {
		namespace = k.Namespace
	}
	api.QPS, api.Burst = 200, 400
	return api, namespace, nil
}

func kubernetesRoutes(c *config.Config) (provider.Provider, error) {
	api, namespace, err := cluster(c)
	if err != nil {
		return nil, err
	}
	t := c.Traefik
	opts := &kubernetes.Options{
		Deployment: deployment(c), HTTPEntryPoint: t.HTTPEntryPoint, HTTPSEntryPoint: t.HTTPSEntryPoint,
		DefaultSecret: t.Kubernetes.DefaultSecret, GatewayService: t.Kubernetes.GatewayService, Endpoints: t.Kubernetes.Endpoints,
	}
	if opts.GatewayService != "" {
		opts.GatewayHost = t.WebspacedURL.Hostname()
	}
	return kubernetes.New(api, namespace, opts)
}

func certManager(c *config.Config) (tlsprovider.Issuer, error) {
	api, namespace, err := cluster(c)
	if err != nil {
		return nil, err
	}
	name, kind := c.Traefik.Kubernetes.ClusterIssuer, "ClusterIssuer"
	if name == "" {
		name, kind = c.Traefik.Kubernetes.Issuer, "Issuer"
	}
	return certmanager.New(api, namespace, name, &certmanager.Options{Deployment: deployment(c), Kind: kind})
}

// inService has the ports of a forwarder in a Service of Kubernetes as well, if there is to be one.
func (d *daemon) inService(c *config.Config, forwarder webspace.PortForwarder) (webspace.PortForwarder, error) {
	service := c.Webspaces.Ports.KubernetesService
	if service == "" {
		return forwarder, nil
	}
	api, namespace, err := cluster(c)
	if err != nil {
		return nil, err
	}
	ports, err := kubeports.New(forwarder, api, namespace, service, &kubeports.Options{Deployment: deployment(c), Logger: d.log})
	if err != nil {
		return nil, fmt.Errorf("webspaces.ports.kubernetes_service: %w", err)
	}
	d.tasks = append(d.tasks, func(ctx context.Context) {
		if err := ports.Run(ctx, d.manager.Synced()); err != nil && !errors.Is(err, context.Canceled) {
			d.log.Error("the ports of the Service are not kept in agreement any more", "service", service, "error", err)
		}
	})
	return ports, nil
}
