// Package metrics exports what the daemon counts, for Prometheus.
//
// Counters of the data plane live in the engine. They are pulled when somebody
// scrapes, so that counting costs the data path nothing: a scrape is one call to
// the engine. docs/metrics.md lists all names; a test compares.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vacate/internal/ipc"
)

// scrapeTimeout bounds how long a scrape waits for the engine.
const scrapeTimeout = 5 * time.Second

// A Snapshot is what the daemon is at one moment.
type Snapshot struct {
	Ready  bool           // takes new leases
	Leases map[string]int // number of leases in each state
	Drives []Drive
	Engine *ipc.Stats // nil while there is no engine

	Proof      *Proof            // nil where nothing is signed
	Generation uint64            // of the engine: 1 for its keeper's first
	Versions   map[string]string // by process
}

// Drive is the space of one drive, in bytes.
type Drive struct {
	UUID, Path                     string
	Up                             bool // takes leases
	Size, Free, Leased, Quarantine int64
}

// Proof is what becomes of records and certificates.
type Proof struct {
	Spool    uint64        // records that wait for the log
	SpoolMax int           // and that may
	Age      time.Duration // of the oldest of them
	Size     uint64        // of the log, as its newest checkpoint says
	Quorum   bool          // the witnesses that the policy wants have cosigned that
	Failing  bool          // the last try to sign, send or certify went wrong

	Signed, Sent, Certified uint64 // since control started
	Certificates            int    // that are kept
	NoQuorum                int    // of these, without the quorum of witnesses
	Due                     int    // leases that have ended, and whose certificate is not final

	Met, Missed, Pending uint64 // leases with a time to be erased by
}

// Config is what [New] needs.
type Config struct {
	// Snapshot is called once a scrape, possibly by several goroutines at once.
	Snapshot func(ctx context.Context) Snapshot
	// PerLease exports series for each lease.
	PerLease bool
}

// Metrics is the daemon's registry, and what is counted outside the engine.
type Metrics struct {
	reg      *prometheus.Registry
	erasures prometheus.Histogram
	commits  prometheus.Histogram
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
}

// New makes the daemon's metrics.
func New(cfg Config) *Metrics {
	m := &Metrics{
		reg: prometheus.NewRegistry(),
		erasures: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "vacate_erasure_seconds",
			Help:    "From shutting a lease's gate to its key destroyed.",
			Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 100e-3, 1},
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "vacate_journal_commit_seconds",
			Help:    "Time to write a transaction of the journal and wait until it is durable.",
			Buckets: []float64{250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1},
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vacate_api_requests_total",
			Help: "Calls of the API that were answered, by call and code.",
		}, []string{"call", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "vacate_api_request_seconds",
			Help:    "Time to answer a call of the API.",
			Buckets: []float64{1e-3, 5e-3, 10e-3, 50e-3, 100e-3, 500e-3, 1, 5, 30},
		}, []string{"call"}),
	}
	m.reg.MustRegister(m.erasures, m.commits, m.requests, m.latency, &collector{cfg},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Erased counts an erasure that took d from gate to destroyed key.
func (m *Metrics) Erased(d time.Duration) { m.erasures.Observe(d.Seconds()) }

// Committed counts a transaction of the journal that took d to become durable.
func (m *Metrics) Committed(d time.Duration) { m.commits.Observe(d.Seconds()) }

// Called counts a call of the API (server.Config.Observe).
func (m *Metrics) Called(call, code string, took time.Duration) {
	m.requests.WithLabelValues(call, code).Inc()
	m.latency.WithLabelValues(call).Observe(took.Seconds())
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		DisableCompression:  true, // a unix socket
	})
}
