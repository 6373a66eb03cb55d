package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/netsoc/webspaced/proxy"
)

// blog is a router and an activator of one site. It is started by the first request.
type blog struct{ server *httptest.Server }

func (b *blog) Route(host string) (proxy.Target, error) {
	if strings.EqualFold(host, "blog.example.org") {
		return proxy.Target{Webspace: "blog", Port: 80}, nil
	}
	return proxy.Target{}, errdefs.ErrNotFound
}

func (b *blog) Ready(proxy.Target) (proxy.Endpoint, bool) { return proxy.Endpoint{}, false }

func (b *blog) Activate(context.Context, proxy.Target) (proxy.Endpoint, error) {
	b.server.Start()
	address := netip.MustParseAddrPort(b.server.Listener.Addr().String())
	return proxy.Endpoint{Address: address, Release: func(error) {}}, nil
}

func ExampleNewGateway() {
	site := &blog{httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s", r.URL.Path, r.Host)
	}))}
	defer site.server.Close()

	gateway := proxy.NewGateway(site, site, &proxy.GatewayOptions{HoldTimeout: 10 * time.Second})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	served := make(chan error)
	go func() { served <- gateway.Serve(listener) }()

	for _, host := range []string{"blog.example.org", "nobody.example.org"} {
		request, _ := http.NewRequest(http.MethodGet, "http://"+listener.Addr().String()+"/hello", nil)
		request.Host = host
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		fmt.Println(response.StatusCode, strings.TrimSpace(string(body)))
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println(gateway.Shutdown(ctx), <-served)
	// Output:
	// 200 /hello of blog.example.org
	// 404 This address does not belong to any site. Is it spelled correctly?
	// <nil> http: Server closed
}

// passedOn is a router of names for a TLS gateway: the shop has a certificate of its own, TLS for the blog ends at the gateway.
type passedOn struct{ *blog }

func (passedOn) RouteTLS(name string) (proxy.Target, error) {
	switch strings.ToLower(name) {
	case "shop.example.org":
		return proxy.Target{Webspace: "shop", Port: 443}, nil
	case "blog.example.org":
		return proxy.Target{}, errdefs.ErrFailedPrecondition
	}
	return proxy.Target{}, errdefs.ErrNotFound
}

func ExampleNewTLSGateway() {
	site := passedOn{&blog{httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s", r.URL.Path, r.Host)
	}))}}
	defer site.server.Close()
	certified := httptest.NewTLSServer(nil) // has a certificate, which is all that it is for
	defer certified.Close()

	holds := proxy.NewHolds(nil) // bounds what waits in both
	edge := proxy.NewTLSGateway(site, site, &proxy.TLSGatewayOptions{
		TLSConfig: &tls.Config{Certificates: certified.TLS.Certificates}, Holds: holds,
	})
	gateway := proxy.NewGateway(site, site, &proxy.GatewayOptions{Holds: holds, HTTPSPort: 443})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	served := make(chan error, 2)
	go func() { served <- edge.Serve(proxy.NewConns(nil).Listen(listener)) }()
	go func() { served <- gateway.Serve(edge.Terminated()) }()

	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
	}}
	response, err := client.Get("https://blog.example.org/hello")
	if err != nil {
		panic(err)
	}
	body, _ := io.ReadAll(response.Body)
	response.Body.Close()
	fmt.Println(response.Proto, string(body))
	_, err = client.Get("https://nobody.example.org/")
	fmt.Println(strings.Contains(err.Error(), "unrecognized name"))
	client.CloseIdleConnections()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println(edge.Shutdown(ctx), gateway.Shutdown(ctx), <-served, <-served)
	// Output:
	// HTTP/2.0 /hello of blog.example.org
	// true
	// <nil> <nil> http: Server closed http: Server closed
}
