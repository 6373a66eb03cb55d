package lxd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/netsoc/webspaced/internal/testbed"
	"github.com/netsoc/webspaced/webspace"
	"github.com/netsoc/webspaced/webspace/lxd"
)

func TestConnect(t *testing.T) {
	_, err := lxd.Connect(t.Context(), &lxd.Options{Socket: filepath.Join(t.TempDir(), "none")})
	require.True(t, errdefs.IsUnavailable(err), err)
	for _, url := range []string{"http://127.0.0.1:1", "lxd.example", "https://", "%"} {
		_, err = lxd.Connect(t.Context(), &lxd.Options{URL: url})
		require.True(t, errdefs.IsInvalidArgument(err), err)
	}
	_, err = lxd.Connect(t.Context(), &lxd.Options{URL: "https://127.0.0.1:1"})
	require.True(t, errdefs.IsUnavailable(err), err)
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		_, err := lxd.Connect(t.Context(), &lxd.Options{Socket: e.Socket, Profile: "none"})
		require.True(t, errdefs.IsFailedPrecondition(err), err)
		_, err = lxd.Connect(t.Context(), &lxd.Options{Socket: e.Socket, NIC: "none"})
		require.True(t, errdefs.IsFailedPrecondition(err), err)
		_, err = lxd.Connect(t.Context(), &lxd.Options{Socket: e.Socket, Project: "none"})
		require.True(t, errdefs.IsFailedPrecondition(err), err)
	})
}

func TestHTTPS(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		_, err := lxd.Connect(t.Context(), &lxd.Options{URL: e.URL, ServerCert: read(t, e.ServerCert)})
		require.True(t, errdefs.IsPermissionDenied(err), err)
		_, err = lxd.Connect(t.Context(), &lxd.Options{URL: e.URL})
		require.True(t, errdefs.IsUnavailable(err), "an unknown server is not believed: %v", err)

		r := connect(t, e, func(o *lxd.Options) {
			o.Socket, o.URL = "", e.URL
			o.ServerCert, o.ClientCert, o.ClientKey = read(t, e.ServerCert), read(t, e.ClientCert), read(t, e.ClientKey)
		})
		name := "https-" + e.Name
		events := watch(t, r)
		create(t, e, r, name, e.Image)
		events.until(t, name)
		require.NoError(t, r.Start(t.Context(), name))
		require.Equal(t, name+"\n", shell(t, r, name, "hostname"))
		require.NoError(t, r.Stop(t.Context(), name, 10*time.Second))
		goroutines := runtime.NumGoroutine()
		paused(t, e, r, name)
		settled(t, goroutines)
	})
}

// TestTrustPassword makes a certificate known that is not yet.
func TestTrustPassword(t *testing.T) {
	e := testbed.LXD(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	opts := lxd.Options{
		URL:        e.URL,
		ServerCert: read(t, e.ServerCert),
		ClientCert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		ClientKey:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		Logger:     slog.New(slog.DiscardHandler),
	}
	_, err = lxd.Connect(t.Context(), &opts)
	require.True(t, errdefs.IsPermissionDenied(err), err)
	e.Run(t, "config", "set", "core.trust_password", "open sesame")
	t.Cleanup(func() { e.Run(t, "config", "unset", "core.trust_password") })
	opts.TrustPassword = "wrong"
	_, err = lxd.Connect(t.Context(), &opts)
	require.True(t, errdefs.IsPermissionDenied(err), err)
	opts.TrustPassword = "open sesame"
	_, err = lxd.Connect(t.Context(), &opts)
	require.NoError(t, err)
	opts.TrustPassword = ""
	_, err = lxd.Connect(t.Context(), &opts)
	require.NoError(t, err)
}

func TestImages(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		images, err := r.Images(t.Context())
		require.NoError(t, err)
		fingerprint := ""
		for _, i := range images {
			if len(i.Aliases) > 0 && i.Aliases[0].Name == e.Image {
				fingerprint = i.Fingerprint
				require.Equal(t, "busybox", i.Properties["os"])
				require.Positive(t, i.Size)
			}
		}
		create(t, e, r, "image-"+e.Name+"-1", fingerprint)
		create(t, e, r, "image-"+e.Name+"-2", fingerprint[:12])
		for _, image := range []string{"", "no-such", fingerprint[:11], "../images", "hello?project=x", "images:debian/12", strings.Repeat("a", 64)} {
			err := r.Create(t.Context(), "image-"+e.Name+"-3", webspace.CreateOptions{Image: image})
			require.True(t, errdefs.IsNotFound(err), "%q: %v", image, err)
		}
		err = r.Create(t.Context(), "image-"+e.Name+"-3", webspace.CreateOptions{Image: e.Image, Record: []byte{0xff}})
		require.True(t, errdefs.IsInvalidArgument(err), err)
	})
}

// events are what a Watch has told.
type events struct {
	notify chan webspace.Event
	done   chan error
}

// watch begins a Watch, which ends with the test, and waits until it is established.
func watch(t *testing.T, r *lxd.Runtime) *events {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	e := &events{notify: make(chan webspace.Event, 1000), done: make(chan error, 1)}
	go func() { e.done <- r.Watch(ctx, func(event webspace.Event) { e.notify <- event }) }()
	t.Cleanup(cancel)
	e.until(t, "")
	return e
}

// until waits for an event of an instance.
func (e *events) until(t *testing.T, name string) {
	t.Helper()
	for {
		select {
		case event := <-e.notify:
			if event.Instance == name {
				return
			}
		case err := <-e.done:
			require.NoError(t, err, "Watch")
		case <-time.After(30 * time.Second):
			require.FailNow(t, "no event of "+name)
		}
	}
}

// lost waits for the end of the Watch.
func (e *events) lost(t *testing.T) {
	t.Helper()
	select {
	case err := <-e.done:
		require.True(t, errdefs.IsUnavailable(err), err)
	case <-time.After(30 * time.Second):
		require.FailNow(t, "Watch does not notice")
	}
}

func TestStopFromInside(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "inside-" + e.Name
		create(t, e, r, name, e.Image)
		require.NoError(t, r.Start(t.Context(), name))
		events := watch(t, r)
		shell(t, r, name, "poweroff -f &")
		events.until(t, name)
		require.Eventually(t, func() bool {
			i, err := r.Get(t.Context(), name)
			return err == nil && i.Status == webspace.StatusStopped
		}, 30*time.Second, 20*time.Millisecond)
		// The engine may still be cleaning up behind it.
		require.NoError(t, r.Start(t.Context(), name))
		require.NoError(t, r.Stop(t.Context(), name, 0))
	})
}

func TestDeafInit(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		e.ImportImage(t, "deaf", testbed.Deaf())
		r := connect(t, e, nil)
		name := "deaf-" + e.Name
		create(t, e, r, name, "deaf")
		require.NoError(t, r.Start(t.Context(), name))
		e.Address(t, name) // by then the init has set its traps
		begin := time.Now()
		require.NoError(t, r.Stop(t.Context(), name, 1500*time.Millisecond))
		require.GreaterOrEqual(t, time.Since(begin), 1500*time.Millisecond)
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, webspace.StatusStopped, i.Status)
		require.NoError(t, r.Delete(t.Context(), name))
	})
}

// TestStartDuringStop starts an instance that is about to stop, which looks as if it ran.
func TestStartDuringStop(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		e.ImportImage(t, "deaf", testbed.Deaf())
		r := connect(t, e, nil)
		name := "hasty-" + e.Name
		create(t, e, r, name, "deaf")
		require.NoError(t, r.Start(t.Context(), name))
		e.Address(t, name)
		impatient, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		require.ErrorIs(t, r.Stop(impatient, name, 2*time.Second), context.DeadlineExceeded)
		require.NoError(t, r.Start(t.Context(), name), "it gives up stopping after two seconds")
		require.ErrorIs(t, r.Stop(impatient, name, 2*time.Second), context.DeadlineExceeded)
		require.NoError(t, r.Stop(t.Context(), name, 0), "at once")
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, webspace.StatusStopped, i.Status)
	})
}

func TestFrozen(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "frozen-" + e.Name
		create(t, e, r, name, e.Image)
		status := func(want webspace.Status) {
			t.Helper()
			i, err := r.Get(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, want, i.Status)
		}
		require.NoError(t, r.Start(t.Context(), name))
		events := watch(t, r)
		e.Run(t, "pause", name)
		events.until(t, name)
		status(webspace.StatusFrozen)
		require.NoError(t, r.Start(t.Context(), name))
		status(webspace.StatusRunning)
		e.Run(t, "pause", name)
		require.NoError(t, r.Stop(t.Context(), name, 0))
		status(webspace.StatusStopped)
	})
}

// TestWriters has two programs with eight writers each count in one record.
func TestWriters(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		programs := []*lxd.Runtime{connect(t, e, nil), connect(t, e, nil)}
		name := "writers-" + e.Name
		create(t, e, programs[0], name, e.Image)
		const writers, each = 16, 4
		var group sync.WaitGroup
		var conflicts atomic.Int32
		for n := range writers {
			r := programs[n%2]
			group.Go(func() {
				for done := 0; done < each && t.Context().Err() == nil; {
					i, err := r.Get(t.Context(), name)
					if err == nil {
						count, _ := strconv.Atoi(string(i.Record))
						err = r.SetRecord(t.Context(), name, []byte(strconv.Itoa(count+1)), i.Revision)
					}
					switch {
					case err == nil:
						done++
					case errdefs.IsConflict(err):
						conflicts.Add(1)
					default:
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		i, err := programs[0].Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(writers*each), string(i.Record))
		t.Logf("%d conflicts", conflicts.Load())
	})
}

// TestRevisionOutlivesStarts writes with a revision from before the engine wrote to the instance itself.
func TestRevisionOutlivesStarts(t *testing.T) {
	onEngine(t, func(t *testing.T, e *testbed.Engine) {
		r := connect(t, e, nil)
		name := "volatile-" + e.Name
		create(t, e, r, name, e.Image)
		e.Run(t, "config", "set", name, "user.other=kept", "limits.processes=500")
		i, err := r.Get(t.Context(), name)
		require.NoError(t, err)
		for n := range 4 {
			var group sync.WaitGroup
			group.Go(func() {
				if n%2 == 0 {
					require.NoError(t, r.Start(t.Context(), name))
				} else {
					require.NoError(t, r.Stop(t.Context(), name, 0))
				}
			})
			require.NoError(t, r.SetRecord(t.Context(), name, fmt.Appendf(nil, "%d", n), i.Revision))
			group.Wait()
			i, err = r.Get(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(n), string(i.Record))
		}
		require.Equal(t, "kept\n", e.Run(t, "config", "get", name, "user.other"))
		require.Equal(t, "500\n", e.Run(t, "config", "get", name, "limits.processes"))
	})
}
