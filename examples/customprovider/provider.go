// Package caddyroutes is a webspaced route provider for the Caddy web server.
package caddyroutes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/netsoc/webspaced/provider"
)

// Provider keeps routes in an HTTP server of a running Caddy, through Caddy's admin API.
type Provider struct {
	url    string // of the server's list of routes
	prefix string // of the "@id" of this deployment's entries in the list
	client http.Client
}

// New takes the URL of the admin API, the name of an HTTP server that has a list of routes (an empty one will do), and
// the name of the deployment, a DNS label: labels have no dots, so that an "@id" belongs to one deployment.
func New(admin, server, deployment string) *Provider {
	url := admin + "/config/apps/http/servers/" + server + "/routes"
	return &Provider{url: url, prefix: deployment + ".", client: http.Client{Timeout: 30 * time.Second}}
}

func (p *Provider) encode(r provider.Route) (json.RawMessage, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	address, ok := strings.CutPrefix(r.Backend, "http://")
	if !ok {
		return nil, fmt.Errorf("backend %s: only http: %w", r.Backend, errdefs.ErrInvalidArgument)
	}
	if len(r.Certificates) > 0 {
		return nil, fmt.Errorf("route %s has certificates, but Caddy has its own: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	var hosts []string
	for _, host := range r.Hosts {
		hosts = append(hosts, host.String())
	}
	type object = map[string]any
	proxy := object{"handler": "reverse_proxy", "upstreams": []object{{"dial": address}}}
	return json.Marshal(object{
		"@id": p.prefix + r.Name, "match": []object{{"host": hosts}}, "handle": []object{proxy}, "terminal": true,
	})
}

// decode reads an entry of the list. It is not ok if the entry is none of this deployment's.
func (p *Provider) decode(raw json.RawMessage) (r provider.Route, ok bool) {
	var entry struct {
		ID     string                                        `json:"@id"`
		Match  []struct{ Host []string }                     `json:"match"`
		Handle []struct{ Upstreams []struct{ Dial string } } `json:"handle"`
	}
	_ = json.Unmarshal(raw, &entry) // a part of it will do: what is not understood differs from what encode makes
	name, ok := strings.CutPrefix(entry.ID, p.prefix)
	if ok = ok && provider.IsLabel(name); !ok || len(entry.Match) != 1 || len(entry.Handle) != 1 || len(entry.Handle[0].Upstreams) != 1 {
		return provider.Route{Name: name}, ok
	}
	r = provider.Route{Name: name, Backend: "http://" + entry.Handle[0].Upstreams[0].Dial}
	for _, s := range entry.Match[0].Host {
		host, _ := provider.ParseHost(s)
		r.Hosts = append(r.Hosts, host)
	}
	var have, want any
	if expected, err := p.encode(r); err == nil && json.Unmarshal(raw, &have) == nil &&
		json.Unmarshal(expected, &want) == nil && reflect.DeepEqual(have, want) {
		return r, true
	}
	return provider.Route{Name: name}, true
}

// Routes implements [provider.Provider].
func (p *Provider) Routes(ctx context.Context) (routes []provider.Route, err error) {
	list, _, err := p.call(ctx, http.MethodGet, nil, "")
	for _, raw := range list {
		if r, ok := p.decode(raw); ok {
			routes = append(routes, r)
		}
	}
	return routes, err
}

// Apply implements [provider.Provider]. All changes are one replacement of the list, on the condition that it is still
// the one that was read; what is put comes first, before routes that may catch all hosts.
func (p *Provider) Apply(ctx context.Context, changes provider.Changes) error {
	var errs []error
	put := []json.RawMessage{}
	replaced := slices.Clone(changes.Delete)
	for _, r := range changes.Put {
		if raw, err := p.encode(r); err != nil {
			errs = append(errs, &provider.RouteError{Route: r.Name, Err: err})
		} else {
			put, replaced = append(put, raw), append(replaced, r.Name)
		}
	}
	var err error = errdefs.ErrConflict
	for tries := 0; tries < 100 && errdefs.IsConflict(err); tries++ {
		list, etag, listErr := p.call(ctx, http.MethodGet, nil, "")
		if err = listErr; err != nil {
			break
		}
		list = slices.DeleteFunc(list, func(raw json.RawMessage) bool {
			r, ours := p.decode(raw)
			return ours && slices.Contains(replaced, r.Name)
		})
		_, _, err = p.call(ctx, http.MethodPatch, append(slices.Clip(put), list...), etag)
	}
	return errors.Join(append(errs, err)...)
}

// call sends a list, or asks for the one that stands.
func (p *Provider) call(ctx context.Context, method string, list []json.RawMessage, ifMatch string) ([]json.RawMessage, string, error) {
	body, err := json.Marshal(list)
	if err != nil {
		return nil, "", err
	}
	var response *http.Response
	for try := 1; ; try++ {
		request, err := http.NewRequestWithContext(ctx, method, p.url, bytes.NewReader(body))
		if err != nil {
			return nil, "", err
		}
		request.Header = http.Header{"Content-Type": {"application/json"}, "If-Match": {ifMatch}}
		if response, err = p.client.Do(request); err == nil {
			break
		} else if ctx.Err() != nil || try == 10 {
			return nil, "", fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
		}
		time.Sleep(time.Duration(try) * 5 * time.Millisecond) // Caddy restarts its admin API with each change
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && method == http.MethodGet {
		err = json.Unmarshal(answer, &list)
	}
	switch {
	case response.StatusCode == http.StatusPreconditionFailed:
		return nil, "", errdefs.ErrConflict
	case err != nil || response.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("caddy: %s: %.200s: %w", response.Status, answer, errdefs.ErrUnavailable)
	}
	return list, response.Header.Get("Etag"), nil
}
