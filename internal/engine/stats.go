package engine

import "vacate/internal/ipc"

// stats are the counters of everything that is open.
func (e *Engine) stats() *ipc.Stats {
	used, refused := e.conns.counts()
	s := &ipc.Stats{Connections: int(used), Refused: refused, Leases: []ipc.LeaseStats{}, Drives: []ipc.DriveStats{}}
	for _, t := range e.tenancies() {
		if counts, ok := t.stats(); ok {
			s.Leases = append(s.Leases, counts)
		}
	}
	for uuid, d := range e.openDrives() {
		n := d.Stats()
		s.Drives = append(s.Drives, ipc.DriveStats{
			UUID: uuid, Reads: n.Reads, Writes: n.Writes, ReadBytes: n.ReadBytes, WriteBytes: n.WriteBytes,
			Flushes: n.Flushes, Errors: n.Errors, LastError: n.LastError,
		})
	}
	return s
}

// stats are one lease's counters. A lease that waits for its drives has none,
// nor has one whose key is destroyed: its maps may be going away.
func (t *tenancy) stats() (ipc.LeaseStats, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.erasure != nil || t.path == nil || t.server == nil {
		return ipc.LeaseStats{}, false
	}
	v := t.counters()
	s := ipc.LeaseStats{
		Lease: t.id, Connections: t.server.Connections(),
		Reads: v.Reads, Writes: v.Writes, Discards: v.Discards, Flushes: v.Flushes,
		ReadBytes: v.ReadBytes, WriteBytes: v.WriteBytes, Errors: v.Errors, Written: t.path.blocks.Written(),
		BrokenQueues: t.pastGuest.BrokenQueues, Expelled: t.pastGuest.Expelled,
	}
	t.server.count(&s)
	return s, true
}
