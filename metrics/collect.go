package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netsoc/webspaced/proxy"
	"github.com/netsoc/webspaced/webspace"
)

// Sources are the parts that count by themselves. Of those that are nil there are no metrics.
type Sources struct {
	Manager   *webspace.Manager
	Gateway   *proxy.Gateway
	Forwarder *proxy.Forwarder
	TLS       *proxy.TLSGateway
	Holds     *proxy.Holds // that they share
	// The connections of the listeners. Those of the TLS gateway are among the gateway's.
	GatewayConns, APIConns *proxy.Conns
}

// Collect has the counters of s read with each scrape. It may be called once; the error says that it was called before.
func (m *Metrics) Collect(s Sources) error { return m.registry.Register(sources(s)) }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("webspaced_"+name, help, labels, nil)
}

var (
	webspaces   = describe("webspaces", "Webspaces by the state of their instances.", "state")
	quarantined = describe("quarantined_webspaces", "Webspaces that are left alone because their record makes no sense.")
	routes      = describe("routes", "Routes that stand in the provider's store.")
	reconciling = describe("reconcile_queue_length", "Webspaces that wait to be reconciled, or are.")
	probing     = describe("probe_queue_length", "Webspaces whose port is being looked at for the sake of their route, or waits to be.")
	booting     = describe("boot_slots_used", "Boots under way.")
	bootSlots   = describe("boot_slots", "Boots that may be under way at a time.")

	held     = describe("held", "Requests and connections that wait for a webspace.")
	heldFor  = describe("held_webspaces", "Webspaces that are waited for.")
	heldTime = describe("hold_duration_seconds", "How long requests and connections waited for a webspace.")
	refusals = describe("refusals_total", "What was refused because there was too much of it, and by which limit.", "what", "reason")

	connections = describe("connections", "Open connections of clients, by the front end.", "front_end")
	waiting     = describe("waiting_connections", "Of the open connections, those without a request.", "front_end")
	evictions   = describe("evicted_connections_total", "Connections without a request that were closed to make room.", "front_end")

	requests = describe("gateway_requests_total", "Requests to the gateway.")
	active   = describe("gateway_active_requests", "Requests and upgraded connections that are at instances.")
	answers  = describe("gateway_failures_total", "Answers that the gateway itself gave, by status.", "status")

	accepted     = describe("accepted_connections_total", "Connections that came.", "front_end")
	acceptErrors = describe("accept_errors_total", "Tries to take a connection that failed, for want of descriptors say.", "front_end")
	unreached    = describe("unreached_connections_total", "Connections whose target could not be reached.", "front_end")
	dialErrors   = describe("dial_errors_total", "Tries to connect to an instance that failed.", "front_end")
	clientsGone  = describe("clients_gone_total", "Clients that left before they were served.", "front_end")
	passedOn     = describe("passed_bytes_total", "Bytes of connections that are passed on as they are, from clients (in) and to them (out). Of each open connection up to 16 MiB are counted at its end.", "front_end", "direction")
	forwards     = describe("forwards", "Port forwards, by whether their port is open.", "state")
	terminated   = describe("tls_terminated_connections_total", "Connections of which TLS ended here.")
	rejected     = describe("tls_rejected_connections_total", "Connections that did not say what they want, or named a host that nobody has, by reason.", "reason")

	certificates = describe("certificates", "Certificates that are ordered, by whether there is a problem with them.", "state")
	domains      = describe("custom_domains", "Custom domains, by whether their proof was there when it was last looked at.", "state")
)

// sources is a Collector. It keeps nothing: what is read in a scrape is what is then.
type sources Sources

var states = []webspace.Status{
	webspace.StatusStopped, webspace.StatusStarting, webspace.StatusRunning,
	webspace.StatusStopping, webspace.StatusFrozen, webspace.StatusError,
}

// Describe implements [prometheus.Collector].
func (s sources) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		webspaces, quarantined, routes, reconciling, probing, booting, bootSlots, held, heldFor, heldTime, refusals,
		connections, waiting, evictions, requests, active, answers, accepted, acceptErrors, unreached, dialErrors, clientsGone,
		passedOn, forwards, terminated, rejected, certificates, domains,
	} {
		ch <- desc
	}
}

// Collect implements [prometheus.Collector].
func (s sources) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	if s.Manager != nil {
		stats := s.Manager.Stats()
		for _, state := range states {
			gauge(webspaces, stats.Webspaces[state], string(state))
		}
		gauge(quarantined, stats.Quarantined)
		gauge(routes, stats.Routes)
		gauge(reconciling, stats.Reconciling)
		gauge(probing, stats.Probing)
		gauge(booting, stats.Booting)
		gauge(bootSlots, stats.BootSlots)
		gauge(certificates, stats.Certificates-stats.CertificateProblems, "ok")
		gauge(certificates, stats.CertificateProblems, "problem")
		gauge(domains, stats.Domains-stats.DomainsUnproven, "proven")
		gauge(domains, stats.DomainsUnproven-stats.DomainsLapsed, "unproven")
		gauge(domains, stats.DomainsLapsed, "lapsed")
	}
	if s.Holds != nil {
		stats := s.Holds.Stats()
		gauge(held, stats.Held)
		gauge(heldFor, stats.Webspaces)
		ch <- prometheus.MustNewConstSummary(heldTime, stats.Ended, stats.Waited.Seconds(), nil)
		counter(refusals, stats.RefusedWebspace, "hold", "webspace")
		counter(refusals, stats.RefusedSource, "hold", "source")
		counter(refusals, stats.RefusedTotal, "hold", "total")
		counter(refusals, stats.RefusedWakes, "hold", "wakes")
	}
	for frontEnd, conns := range map[string]*proxy.Conns{"gateway": s.GatewayConns, "api": s.APIConns} {
		if conns == nil {
			continue
		}
		stats := conns.Stats()
		gauge(connections, stats.Open, frontEnd)
		gauge(waiting, stats.Waiting, frontEnd)
		counter(evictions, stats.Evicted, frontEnd)
		counter(refusals, stats.RefusedSource, frontEnd+"_connection", "source")
		counter(refusals, stats.RefusedTotal, frontEnd+"_connection", "total")
	}
	if s.Gateway != nil {
		stats := s.Gateway.Stats()
		counter(requests, stats.Requests)
		gauge(active, stats.Active)
		counter(refusals, stats.RefusedWebspace, "gateway_request", "webspace")
		counter(refusals, stats.RefusedSource, "gateway_request", "source")
		counter(refusals, stats.RefusedTotal, "gateway_request", "total")
		counter(dialErrors, stats.DialErrors, "gateway")
		counter(clientsGone, stats.ClientsGone, "gateway")
		for _, status := range proxy.FailureStatuses() {
			counter(answers, stats.Failures[status], strconv.Itoa(status))
		}
	}
	carried := func(frontEnd string, stats proxy.TCPStats) {
		gauge(connections, stats.Live, frontEnd)
		counter(accepted, stats.Accepted, frontEnd)
		counter(acceptErrors, stats.AcceptErrors, frontEnd)
		counter(unreached, stats.Failures, frontEnd)
		counter(dialErrors, stats.DialErrors, frontEnd)
		counter(clientsGone, stats.ClientsGone, frontEnd)
		counter(refusals, stats.RefusedWebspace, frontEnd+"_connection", "webspace")
		counter(refusals, stats.RefusedSource, frontEnd+"_connection", "source")
		counter(refusals, stats.RefusedTotal, frontEnd+"_connection", "total")
		counter(passedOn, stats.Received, frontEnd, "in")
		counter(passedOn, stats.Sent, frontEnd, "out")
	}
	if s.Forwarder != nil {
		stats := s.Forwarder.Stats()
		carried("forwarder", stats.TCPStats)
		gauge(forwards, stats.Forwards-stats.Unopened, "open")
		gauge(forwards, stats.Unopened, "unopened")
	}
	if s.TLS != nil {
		stats := s.TLS.Stats()
		carried("tls_gateway", stats.TCPStats)
		counter(terminated, stats.Terminated)
		for _, reason := range proxy.HelloFailures() {
			counter(rejected, stats.Hellos[reason], reason)
		}
		counter(rejected, stats.UnknownNames, "unknown_name")
	}
}
