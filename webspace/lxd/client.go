package lxd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	engine "github.com/lxc/lxd/client"
	"github.com/lxc/lxd/shared/api"
)

// server is what is used of the engine's client library.
//
// Its calls that start an operation are not: each opens an event stream that no context ends, and leaves two goroutines
// behind for up to a minute. RawQuery does neither, and works for every call.
type server interface {
	RawQuery(method, path string, data any, etag string) (*api.Response, string, error)
	GetHTTPClient() (*http.Client, error)
}

// client talks to the engine within one project. All its methods return classified errors, see [client.classify].
type client struct {
	base    *engine.ProtocolLXD
	http    *http.Client
	url     string // for plain HTTP requests
	ws      string // for websockets
	project string
	timeout time.Duration // of a call
	denied  func(error)   // is told when the engine does not permit something; or nil
}

// dialUnix makes a client of a unix socket, without connecting to it yet.
func dialUnix(socket string, opts Options) (*client, error) {
	s, err := engine.ConnectLXDUnix(socket, &engine.ConnectionArgs{SkipGetServer: true, UserAgent: userAgent})
	if err != nil {
		return nil, fmt.Errorf("lxd: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return newClient(s, "http://unix.socket", opts, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})
}

// dialHTTPS makes a client of a URL, without connecting to it yet.
func dialHTTPS(opts Options) (*client, error) {
	address, err := url.Parse(opts.URL)
	if err != nil || address.Scheme != "https" || address.Host == "" {
		return nil, fmt.Errorf("lxd: %q is not a URL such as https://lxd.example:8443: %w", opts.URL, errdefs.ErrInvalidArgument)
	}
	base := "https://" + address.Host
	s, err := engine.ConnectLXD(base, &engine.ConnectionArgs{
		TLSClientCert:      opts.ClientCert,
		TLSClientKey:       opts.ClientKey,
		TLSCA:              opts.CA,
		TLSServerCert:      opts.ServerCert,
		InsecureSkipVerify: opts.InsecureSkipVerify,
		SkipGetServer:      true,
		UserAgent:          userAgent,
	})
	if err != nil {
		return nil, fmt.Errorf("lxd: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return newClient(s, base, opts, new(net.Dialer).DialContext)
}

func newClient(s engine.InstanceServer, base string, opts Options, dial func(context.Context, string, string) (net.Conn, error)) (*client, error) {
	protocol, ok := s.(*engine.ProtocolLXD)
	if !ok {
		return nil, fmt.Errorf("lxd: the client library gave a %T: %w", s, errdefs.ErrInternal)
	}
	hc, err := s.GetHTTPClient()
	if err != nil {
		return nil, fmt.Errorf("lxd: %w: %w", err, errdefs.ErrInternal)
	}
	// The library's own dial functions take no notice of contexts, and its TLS handshake waits for ever for an engine
	// that takes connections but is stopped. Those of net/http do not.
	transport := hc.Transport.(*http.Transport)
	transport.DialContext = dial
	transport.DialTLSContext = nil
	transport.TLSHandshakeTimeout = 10 * time.Second
	return &client{
		base:    protocol,
		http:    hc,
		url:     base,
		ws:      "ws" + strings.TrimPrefix(base, "http"),
		project: opts.Project,
		timeout: opts.CallTimeout,
	}, nil
}

const userAgent = "webspaced"

// with returns the server bound to a context. The library's WithContext changes its receiver, which is therefore a copy
// made for this one call.
func (c *client) with(ctx context.Context) server {
	return c.base.UseProject(c.project).(*engine.ProtocolLXD).WithContext(ctx)
}

// path makes the path of an API call. Each element is one path segment, whatever is in it.
func (c *client) path(query url.Values, elements ...string) string {
	var b strings.Builder
	b.WriteString("/1.0")
	for _, e := range elements {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(e))
	}
	values := url.Values{}
	for k, v := range query {
		values[k] = v
	}
	if !values.Has("all-projects") {
		values.Set("project", c.project)
	}
	b.WriteByte('?')
	b.WriteString(values.Encode())
	return b.String()
}

// call makes one request within the call timeout.
func (c *client) call(ctx context.Context, method, path string, body any, etag string) (*api.Response, string, error) {
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	response, tag, err := c.with(bounded).RawQuery(method, path, body, etag)
	return response, tag, c.classify(ctx, err)
}

// get decodes what is at path into out, and returns its ETag.
func (c *client) get(ctx context.Context, path string, out any) (etag string, err error) {
	response, etag, err := c.call(ctx, http.MethodGet, path, nil, "")
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(response.Metadata, out); err != nil {
		return "", fmt.Errorf("lxd: %s: %v: %w", path, err, errFailed)
	}
	return etag, nil
}

// linger is how long a request that changes something outlives the caller's context, so that whether the engine has begun
// with it is decided when the caller goes on: it then shows among the instance's operations, see [Runtime.idle].
const linger = 500 * time.Millisecond

// change makes a request that changes something, and waits until that is done, for timeout at most. When ctx ends it does
// not wait any longer; the engine goes on.
func (c *client) change(ctx context.Context, timeout time.Duration, method, path string, body any, etag string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("lxd: %w", ctx.Err())
	}
	request, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(linger):
			cancel()
		case <-request.Done():
		}
	})()
	response, _, err := c.with(request).RawQuery(method, path, body, etag)
	if err != nil || response.Type != api.AsyncResponse {
		return making(method, c.classify(ctx, err))
	}
	op, err := response.MetadataAsOperation()
	if err != nil {
		return fmt.Errorf("lxd: %s %s: %v: %w", method, path, err, errFailed)
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	op, err = c.wait(bounded, op.ID)
	switch {
	case err != nil && ctx.Err() == nil && bounded.Err() != nil:
		return fmt.Errorf("lxd: %s %s: not done within %v: %w", method, path, timeout, errdefs.ErrUnavailable)
	case err != nil:
		return err
	case op.StatusCode != api.Success:
		return making(method, c.classify(ctx, operationError(op.Err)))
	}
	return nil
}

// wait returns an operation once it has ended, however. ctx is the only bound.
func (c *client) wait(ctx context.Context, id string) (*api.Operation, error) {
	query := url.Values{}
	if deadline, ok := ctx.Deadline(); ok {
		// So that the engine does not wait on when we do no longer.
		query.Set("timeout", strconv.Itoa(int(time.Until(deadline)/time.Second)+1))
	}
	response, _, err := c.with(ctx).RawQuery(http.MethodGet, c.path(query, "operations", id, "wait"), nil, "")
	if api.StatusErrorCheck(err, http.StatusNotFound) {
		// The engine was restarted, or has forgotten the operation because it ended long ago.
		return nil, fmt.Errorf("lxd: how operation %s ended is not known: %w", id, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, c.classify(ctx, err) // from Incus, also what the operation failed with
	}
	op, err := response.MetadataAsOperation()
	if err != nil {
		return nil, fmt.Errorf("lxd: operation %s: %v: %w", id, err, errFailed)
	}
	if !op.StatusCode.IsFinal() {
		return nil, fmt.Errorf("lxd: operation %s goes on: %w", id, errdefs.ErrUnavailable)
	}
	return op, nil
}

// stream returns the body of what is at path. The caller closes it; it ends with ctx at the latest.
func (c *client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, c.classify(ctx, err)
	}
	request.Header.Set("User-Agent", userAgent)
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.classify(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		var failure api.Response
		if json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&failure) != nil {
			failure.Error = response.Status
		}
		return nil, c.classify(ctx, api.StatusErrorf(response.StatusCode, "%s", failure.Error))
	}
	return response.Body, nil
}

// websocket opens a websocket, which is closed when ctx ends. The handshake has the call timeout.
func (c *client) websocket(ctx context.Context, path string) (*websocket.Conn, error) {
	transport := c.http.Transport.(*http.Transport)
	dialer := websocket.Dialer{
		Proxy:            transport.Proxy,
		TLSClientConfig:  transport.TLSClientConfig,
		HandshakeTimeout: c.timeout,
		NetDialContext: func(dial context.Context, network, address string) (net.Conn, error) {
			conn, err := transport.DialContext(dial, network, address)
			if err == nil {
				context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		},
	}
	conn, response, err := dialer.DialContext(ctx, c.ws+path, http.Header{"User-Agent": {userAgent}})
	if err != nil {
		if response != nil && errors.Is(err, websocket.ErrBadHandshake) {
			err = api.StatusErrorf(response.StatusCode, "websocket refused: %s", response.Status)
		}
		return nil, c.classify(ctx, err)
	}
	return conn, nil
}

// retry calls f again while it says that the instance is busy, for limit at most.
func retry(ctx context.Context, limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := f()
		// With jitter, so that those who collided once do not do so for ever.
		wait := pause/2 + rand.N(pause)
		if !errors.Is(err, errBusy) || time.Until(deadline) < wait {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
