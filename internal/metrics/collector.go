package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"vacate/internal/ipc"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// What a scrape pulls. Counters start at zero with each engine, as Prometheus
// expects of a restart.
var (
	descInfo        = desc("vacate_build_info", "Always 1; the labels say which version of a process runs.", "process", "version")
	descUp          = desc("vacate_engine_up", "1 while an engine answers, else 0.")
	descStarts      = desc("vacate_engine_starts_total", "Engines that this keeper has started; each after the first took over from another.")
	descReady       = desc("vacate_ready", "1 while the daemon takes new leases, else 0.")
	descLeases      = desc("vacate_leases", "Leases whose space is not free, by state.", "state")
	descConnections = desc("vacate_connections", "Clients that are connected, over all leases.")
	descRefused     = desc("vacate_connections_refused_total", "Clients that were refused because too many were connected.")

	descDriveUp         = desc("vacate_drive_up", "1 while the drive takes leases, else 0.", "drive", "uuid")
	descDriveSize       = desc("vacate_drive_size_bytes", "Size of the drive.", "drive", "uuid")
	descDriveFree       = desc("vacate_drive_free_bytes", "Bytes that a new lease may take.", "drive", "uuid")
	descDriveLeased     = desc("vacate_drive_leased_bytes", "Bytes held by leases.", "drive", "uuid")
	descDriveQuarantine = desc("vacate_drive_quarantined_bytes", "Bytes withheld until the I/O of erased leases has drained.", "drive", "uuid")
)

// A counted is one number of the engine: its description, type, and where it is.
type counted[T any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(T) float64
}

var perDrive = []counted[ipc.DriveStats]{
	{desc("vacate_drive_reads_total", "Reads sent to the drive.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.Reads) }},
	{desc("vacate_drive_writes_total", "Writes sent to the drive.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.Writes) }},
	{desc("vacate_drive_flushes_total", "Flushes sent to the drive.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.Flushes) }},
	{desc("vacate_drive_errors_total", "Requests that the drive failed.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.Errors) }},
	{desc("vacate_drive_read_bytes_total", "Bytes read from the drive.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.ReadBytes) }},
	{desc("vacate_drive_write_bytes_total", "Bytes written to the drive.", "uuid"), prometheus.CounterValue, func(d ipc.DriveStats) float64 { return float64(d.WriteBytes) }},
}

var perLease = []counted[ipc.LeaseStats]{
	{desc("vacate_lease_connections", "Clients of the lease that are connected.", "lease"), prometheus.GaugeValue, func(l ipc.LeaseStats) float64 { return float64(l.Connections) }},
	{desc("vacate_lease_reads_total", "Reads by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Reads) }},
	{desc("vacate_lease_writes_total", "Writes by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Writes) }},
	{desc("vacate_lease_discards_total", "Discards and write-zeroes by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Discards) }},
	{desc("vacate_lease_flushes_total", "Flushes by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Flushes) }},
	{desc("vacate_lease_errors_total", "Requests of the lease that ended with an error.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Errors) }},
	{desc("vacate_lease_read_bytes_total", "Bytes read by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.ReadBytes) }},
	{desc("vacate_lease_write_bytes_total", "Bytes written by clients of the lease.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.WriteBytes) }},
	{desc("vacate_lease_written_bytes", "Bytes of the volume that hold data of the lease.", "lease"), prometheus.GaugeValue, func(l ipc.LeaseStats) float64 { return float64(l.Written) }},
	{desc("vacate_lease_queues", "Virtqueues of the lease that are processed.", "lease"), prometheus.GaugeValue, func(l ipc.LeaseStats) float64 { return float64(l.Queues) }},
	{desc("vacate_lease_queues_broken_total", "Virtqueues given up because of what the guest had put into them.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.BrokenQueues) }},
	{desc("vacate_lease_expelled_total", "Programs that were disconnected from the vhost-user export because of what they had sent.", "lease"), prometheus.CounterValue, func(l ipc.LeaseStats) float64 { return float64(l.Expelled) }},
}

var perNode = []counted[*Proof]{
	{desc("vacate_spool_records", "Records that wait for the log."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Spool) }},
	{desc("vacate_spool_limit_records", "Records that may wait for the log before no lease is opened."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.SpoolMax) }},
	{desc("vacate_spool_age_seconds", "Since when the oldest record waits for the log; 0 if none does."), prometheus.GaugeValue, func(p *Proof) float64 { return p.Age.Seconds() }},
	{desc("vacate_records_signed_total", "Records that were signed."), prometheus.CounterValue, func(p *Proof) float64 { return float64(p.Signed) }},
	{desc("vacate_records_logged_total", "Records that the log has taken."), prometheus.CounterValue, func(p *Proof) float64 { return float64(p.Sent) }},
	{desc("vacate_log_size_records", "Records in the log, as its newest checkpoint says."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Size) }},
	{desc("vacate_log_quorum", "1 while the newest checkpoint has the cosignatures that the policy wants, else 0."), prometheus.GaugeValue, func(p *Proof) float64 { return truth(p.Quorum) }},
	{desc("vacate_log_failing", "1 while signing, sending or certifying does not work, else 0."), prometheus.GaugeValue, func(p *Proof) float64 { return truth(p.Failing) }},
	{desc("vacate_certificates", "Certificates that are kept."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Certificates) }},
	{desc("vacate_certificates_made_total", "Certificates that were made final."), prometheus.CounterValue, func(p *Proof) float64 { return float64(p.Certified) }},
	{desc("vacate_certificates_without_quorum", "Certificates that lack the quorum of witnesses."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.NoQuorum) }},
	{desc("vacate_certificates_due", "Leases that have ended and have no final certificate."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Due) }},
	{desc("vacate_deadlines_met", "Leases that were erased by their time, of those whose certificate is kept."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Met) }},
	{desc("vacate_deadlines_missed", "Leases that were not."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Missed) }},
	{desc("vacate_deadlines_pending", "Leases that have a time to be erased by, and are open."), prometheus.GaugeValue, func(p *Proof) float64 { return float64(p.Pending) }},
}

// A collector asks the daemon for a snapshot at each scrape.
type collector struct{ cfg Config }

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descUp, descStarts, descReady, descLeases, descConnections, descRefused,
		descDriveUp, descDriveSize, descDriveFree, descDriveLeased, descDriveQuarantine} {
		ch <- d
	}
	for _, m := range perNode {
		ch <- m.desc
	}
	for _, m := range perDrive {
		ch <- m.desc
	}
	for _, m := range perLease {
		ch <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	snap := c.cfg.Snapshot(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for process, version := range snap.Versions {
		gauge(descInfo, 1, process, version)
	}
	gauge(descUp, truth(snap.Engine != nil))
	gauge(descReady, truth(snap.Ready))
	for state, n := range snap.Leases {
		gauge(descLeases, float64(n), state)
	}
	for _, d := range snap.Drives {
		gauge(descDriveUp, truth(d.Up), d.Path, d.UUID)
		gauge(descDriveSize, float64(d.Size), d.Path, d.UUID)
		gauge(descDriveFree, float64(d.Free), d.Path, d.UUID)
		gauge(descDriveLeased, float64(d.Leased), d.Path, d.UUID)
		gauge(descDriveQuarantine, float64(d.Quarantine), d.Path, d.UUID)
	}
	if snap.Proof != nil {
		for _, m := range perNode {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(snap.Proof))
		}
	}
	if snap.Engine == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(descStarts, prometheus.CounterValue, float64(snap.Generation))
	gauge(descConnections, float64(snap.Engine.Connections))
	ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(snap.Engine.Refused))
	for _, d := range snap.Engine.Drives {
		collect(ch, perDrive, d, d.UUID)
	}
	if !c.cfg.PerLease {
		return
	}
	for _, l := range snap.Engine.Leases {
		collect(ch, perLease, l, l.Lease)
	}
}

func collect[T any](ch chan<- prometheus.Metric, all []counted[T], of T, label string) {
	for _, m := range all {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(of), label)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
