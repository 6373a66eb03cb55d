//go:build linux

package local

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	hello        = "hello"          // the name of the image
	helloProgram = "webspace-hello" // what the program is called when it is the instance
	selfProgram  = "/proc/self/exe" // the program itself, even if its file is replaced or gone
)

func helloImage(ports []uint16) Image {
	image := Image{
		Description: "A small site to try webspaces with; put your own pages into site/",
		Command:     []string{selfProgram},
	}
	for _, port := range ports {
		image.Command = append(image.Command, strconv.Itoa(int(port)))
	}
	return image
}

// Main is for programs that use the image "hello", the first thing in main: if the process was started as an instance it
// is one until it ends, and does not return.
func Main() {
	if os.Args[0] != helloProgram {
		return
	}
	log.SetFlags(log.LstdFlags | log.LUTC)
	log.SetOutput(os.Stdout)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := serveHello(ctx, os.Getenv("NAME"), os.Getenv("ADDRESS"), os.Getenv("HOME"), os.Args[1:])
	stop()
	if err != nil {
		log.Print(err)
		os.Exit(1)
	}
	log.Print("good bye")
	os.Exit(0)
}

//go:embed hello.html
var helloHTML string

type helloSite struct {
	Name, Address, Home string
	Boots               int
	StartedAt           time.Time
	page                *template.Template
	requests            atomic.Int64
}

// serveHello serves until ctx ends.
func serveHello(ctx context.Context, name, address, home string, ports []string) error {
	s := &helloSite{Name: name, Address: address, Home: home, StartedAt: time.Now().UTC()}
	var err error
	if s.page, err = template.New("page").Parse(helloHTML); err != nil {
		return err
	}
	if s.Boots, err = countBoot(filepath.Join(home, "boots")); err != nil {
		log.Print(err) // a full disk is no reason not to serve
	}
	var listeners []net.Listener
	for _, port := range ports {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, port))
		if err != nil {
			log.Printf("without port %s: %v", port, err)
			continue
		}
		log.Printf("%s, boot %d, listens on http://%s", name, s.Boots, listener.Addr())
		listeners = append(listeners, listener)
	}
	if len(listeners) == 0 {
		return errors.New("no port to listen on")
	}
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	var group sync.WaitGroup
	for _, listener := range listeners {
		group.Go(func() { _ = server.Serve(listener) })
	}
	<-ctx.Done()
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = server.Shutdown(limited)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	group.Wait()
	return err
}

// countBoot adds one to the number in a file, and returns it.
func countBoot(path string) (int, error) {
	content, err := os.ReadFile(path)
	if ignoreNotExist(err) != nil {
		return 1, err
	}
	boots, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	boots++
	if err := os.WriteFile(path+".new", fmt.Appendln(nil, boots), 0o644); err != nil {
		return boots, err
	}
	return boots, os.Rename(path+".new", path)
}

// ServeHTTP answers with the member's own site, if there is one, and else with a page about the instance.
func (s *helloSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	count := s.requests.Add(1)
	log.Printf("%s %s %q from %s", r.Method, r.Host, r.URL.Path, r.RemoteAddr)
	// A root, so that a link in the site leads nowhere else.
	if site, err := os.OpenRoot(filepath.Join(s.Home, "site")); err == nil {
		defer site.Close()
		http.FileServerFS(site.FS()).ServeHTTP(w, r)
		return
	}
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	err := s.page.Execute(w, struct {
		*helloSite
		Host     string
		Requests int64
		Up       time.Duration
	}{s, host, count, time.Since(s.StartedAt).Round(time.Second)})
	if err != nil && r.Context().Err() == nil {
		log.Print(err)
	}
}
