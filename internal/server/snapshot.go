package server

import (
	"context"
	"time"

	"vacate/internal/lease"
	"vacate/internal/metrics"
	"vacate/internal/node"
)

// Snapshot asks a node for what /metrics exports.
func Snapshot(ctx context.Context, n Node, p Processes) metrics.Snapshot {
	st := n.Status()
	out := metrics.Snapshot{Ready: st.Ready, Leases: make(map[string]int), Versions: map[string]string{"control": p.Control}}
	if p.Keeper != "" {
		out.Versions["keeper"] = p.Keeper
	}
	for _, s := range lease.States {
		out.Leases[string(s)] = st.Leases[s] // a series that comes and goes is hard to alert on
	}
	for _, d := range n.Drives(ctx) {
		out.Drives = append(out.Drives, metrics.Drive{UUID: d.UUID, Path: d.Path, Up: d.State == node.DriveReady,
			Size: d.SizeBytes, Free: d.FreeBytes, Leased: d.LeasedBytes, Quarantine: d.QuarantinedBytes})
	}
	// No counters means no engine, and vacate_engine_up says so.
	if stats, err := n.Stats(ctx); err == nil {
		out.Engine, out.Generation = &stats, st.Engine.Generation
		out.Versions["engine"] = st.Engine.Version
	}
	return out
}

// Erasures tells observe how long each erasure took, from gate to destroyed key,
// until ctx is done. It returns ctx's error, or the one that ended the watch.
func Erasures(ctx context.Context, n Node, observe func(time.Duration)) error {
	w, err := n.Watch()
	if err != nil {
		return err
	}
	defer w.Close()
	told := make(map[string]bool) // erased leases whose space is not free yet
	for {
		c, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if c.Missed > 0 {
			clear(told) // bounded; a lease that was told about may be told about again
			continue
		}
		l := c.Lease
		if e := l.Erasure; e != nil && e.KeyDestroyedNs > e.GateClosedNs && e.GateClosedNs != 0 && !told[l.ID] {
			told[l.ID] = true
			observe(time.Duration(e.KeyDestroyedNs - e.GateClosedNs))
		}
		if l.Space == lease.Free {
			delete(told, l.ID)
		}
	}
}
