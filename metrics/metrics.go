// Package metrics counts what goes on in a webspaced for Prometheus.
//
// A [Metrics] is given to the parts as they are made, as an observer or around them, and reads the counters of those that
// have some with each scrape:
//
//	m := metrics.New("1.0.0")
//	manager, err := webspace.NewManager(runtime, users, "example.org", &webspace.Options{Observer: m.Observer()})
//	...
//	err = m.Collect(metrics.Sources{Manager: manager, Gateway: gateway})
//	http.Handle("GET /metrics", m.Handler(""))
//
// No label has a value that comes from outside: none names a user, a webspace, a host or a port. docs/metrics.md says what
// there is.
package metrics

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/netsoc/webspaced/webspace"
)

// quick are the buckets, in seconds, for what takes from less than a millisecond to what nobody waits for.
var quick = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// boots are those for what takes a boot. One without a wait is a matter of milliseconds, a hold ends after 50 s.
var boots = []float64{.005, .01, .025, .05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60}

// The phases of a boot. The last one is not the Manager's.
const (
	phaseQueue     = "queue"
	phaseStart     = "start"
	phaseAddress   = "address"
	phaseProbe     = "probe"
	phaseFirstByte = "first_byte"
)

// Metrics are those of one webspaced, in a registry of their own. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	bootPhases, bootSeconds     *prometheus.HistogramVec
	reconcileWait, reconcile    prometheus.Histogram
	reconcileErrors, syncErrors prometheus.Counter
	sync                        prometheus.Histogram
	lastSync                    prometheus.Gauge
	provider, identity, api     *prometheus.HistogramVec
	routeChanges                *prometheus.CounterVec
}

// New returns metrics of which none has been counted. version is the program's.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	single := func(v *prometheus.HistogramVec) prometheus.Histogram {
		return v.WithLabelValues().(prometheus.Histogram)
	}
	m.bootPhases = histogram("webspaced_boot_phase_duration_seconds", "How long the phases of successful boots took.", boots, "phase")
	m.bootSeconds = histogram("webspaced_boot_duration_seconds", "How long boots took until the port took connections, or until they failed, by result.", boots, "result")
	m.reconcileWait = single(histogram("webspaced_reconcile_wait_duration_seconds", "How long webspaces that were due waited to be reconciled.", quick))
	m.reconcile = single(histogram("webspaced_reconcile_duration_seconds", "How long the reconciliation of a webspace took.", quick))
	m.reconcileErrors = counter("webspaced_reconcile_errors_total", "Reconciliations that failed; they are tried again.").WithLabelValues()
	m.sync = single(histogram("webspaced_sync_duration_seconds", "How long full reads of the runtime and the routes took.", boots))
	m.syncErrors = counter("webspaced_sync_errors_total", "Full reads that failed; routes stay as they are then.").WithLabelValues()
	m.lastSync = gauge("webspaced_sync_last_success_timestamp_seconds", "When all webspaces and routes were last read; 0 before the first time.").WithLabelValues()
	m.provider = histogram("webspaced_provider_duration_seconds", "How long the route provider took to read all routes (read) or to change some (write), by result.", quick, "operation", "result")
	m.routeChanges = counter("webspaced_route_changes_total", "Routes that the provider was asked to put or delete, by result.", "change", "result")
	m.identity = histogram("webspaced_identity_duration_seconds", "How long the identity provider took to answer, by result.", quick, "operation", "result")
	m.api = histogram("webspaced_api_request_duration_seconds", "How long requests to the API took, by operation and class of the status.", quick, "operation", "status")
	gauge("webspaced_build_info", "Always 1; what was built.", "version", "goversion").WithLabelValues(version, runtime.Version()).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	// What has never happened is 0, not absent: rates and alerts need a value to begin with.
	for _, phase := range []string{phaseQueue, phaseStart, phaseAddress, phaseProbe, phaseFirstByte} {
		m.bootPhases.WithLabelValues(phase)
	}
	for _, result := range webspace.BootResults() {
		m.bootSeconds.WithLabelValues(string(result))
	}
	for _, result := range results {
		for _, operation := range []string{opRead, opWrite} {
			m.provider.WithLabelValues(operation, result)
		}
		for _, change := range []string{changePut, changeDelete} {
			m.routeChanges.WithLabelValues(change, result)
		}
		for _, operation := range []string{opAuthenticate, opByID, opByUsername} {
			m.identity.WithLabelValues(operation, result)
		}
	}
	return m
}

// Observer is for the options of the Manager.
func (m *Metrics) Observer() webspace.Observer {
	return webspace.Observer{
		Boot: func(b webspace.Boot) {
			total := b.Queue + b.Start + b.Address + b.Probe
			m.bootSeconds.WithLabelValues(string(b.Result)).Observe(total.Seconds())
			if b.Result != webspace.BootReady {
				return // how far it came is in the result
			}
			m.phase(phaseQueue, b.Queue)
			m.phase(phaseStart, b.Start)
			m.phase(phaseAddress, b.Address)
			m.phase(phaseProbe, b.Probe)
		},
		FirstByte: func(took time.Duration) { m.phase(phaseFirstByte, took) },
		Reconciled: func(waited, took time.Duration, err error) {
			m.reconcileWait.Observe(waited.Seconds())
			m.reconcile.Observe(took.Seconds())
			if failed(err) {
				m.reconcileErrors.Inc()
			}
		},
		Synced: func(took time.Duration, err error) {
			m.sync.Observe(took.Seconds())
			switch {
			case failed(err):
				m.syncErrors.Inc()
			case err == nil:
				m.lastSync.SetToCurrentTime()
			}
		},
	}
}

func (m *Metrics) phase(phase string, took time.Duration) {
	m.bootPhases.WithLabelValues(phase).Observe(took.Seconds())
}

// ObserveRequest is for the options of the API's server.
func (m *Metrics) ObserveRequest(operation string, status int, took time.Duration) {
	class := "none" // the connection was cut off before there was an answer
	if status > 0 {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.api.WithLabelValues(operation, class).Observe(took.Seconds())
}

// Handler serves the metrics, to those who show token as a bearer token; to everybody if it is empty. At most four are
// served at a time, and the others told to come back.
func (m *Metrics) Handler(token string) http.Handler {
	serve := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
	if token == "" {
		return serve
	}
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		sum := sha256.Sum256([]byte(strings.TrimSpace(got)))
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(sum[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "The token for metrics is needed, as a bearer token.", http.StatusUnauthorized)
			return
		}
		serve.ServeHTTP(w, r)
	})
}

// How a call ended. Who is refused has been answered well; who has left has not failed.
const (
	resultOK       = "ok"
	resultRefused  = "refused"
	resultCanceled = "canceled"
	resultError    = "error"
)

var results = []string{resultOK, resultRefused, resultCanceled, resultError}

func resultOf(err error) string {
	switch {
	case err == nil:
		return resultOK
	case errors.Is(err, context.Canceled):
		return resultCanceled
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errdefs.IsInvalidArgument(err):
		return resultRefused
	}
	return resultError
}

func failed(err error) bool { return err != nil && !errors.Is(err, context.Canceled) }
