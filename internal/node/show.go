package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// Get returns a lease, ended ones included while they are remembered.
func (n *Node) Get(id string) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.leases[id]; e != nil {
		return e.view(), nil
	}
	if l, ok := n.past.byID[id]; ok {
		return l, nil
	}
	return lease.Lease{}, noLease(id)
}

// List returns the leases, oldest first. Ended ones, the last 1000, are left out
// unless they are asked for; those that are lost or erased and whose space is
// not free yet are not left out.
func (n *Node) List(ended bool) []lease.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]lease.Lease, 0, len(n.leases)+len(n.past.order))
	for _, e := range n.leases {
		all = append(all, e.view())
	}
	if ended {
		for _, l := range n.past.byID {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b lease.Lease) int {
		// An opening that is not in the journal yet has no number: it is the newest.
		return cmp.Or(cmp.Compare(a.OpenSeq-1, b.OpenSeq-1), strings.Compare(a.ID, b.ID))
	})
	return all
}

// SocketPath is where clients reach a lease's export of a kind while it is open.
func (n *Node) SocketPath(id, kind string) string { return n.cfg.Sockets.Path(id, kind) }

// Stats are the engine's counters.
func (n *Node) Stats(ctx context.Context) (ipc.Stats, error) { return n.cfg.Engine.Stats(ctx) }

// A Drive is an enrolled drive, as it is shown.
type Drive struct {
	ipc.DriveInfo    // as the engine saw it last; of a missing drive what the journal has
	State            DriveState
	StateWhy         string // where it is not ready
	CapacityBytes    int64  // what leases can take in all
	FreeBytes        int64  // of it, by a new lease now
	LeasedBytes      int64  // by leases with a key
	QuarantinedBytes int64  // by leases without, until nothing is in flight
	Errors           uint64 // requests that the device failed, since the engine started
	LastError        string
}

// Drives returns all drives, by path. Counters are left out where the engine
// does not answer within a second.
func (n *Node) Drives(ctx context.Context) []Drive {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	stats, err := n.cfg.Engine.Stats(ctx)
	if err != nil {
		stats = ipc.Stats{} // drives are shown all the same
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Drive, 0, len(n.drives))
	for _, d := range n.drives {
		out := n.show(d)
		for _, s := range stats.Drives {
			if s.UUID == d.j.UUID {
				out.Errors, out.LastError = s.Errors, s.LastError
			}
		}
		all = append(all, out)
	}
	slices.SortFunc(all, func(a, b Drive) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.UUID, b.UUID))
	})
	return all
}

// Drive returns one drive, by path, UUID or serial.
func (n *Node) Drive(ctx context.Context, name string) (Drive, error) {
	n.mu.Lock()
	d, err := n.findDrive(name)
	uuid := ""
	if err == nil {
		uuid = d.j.UUID
	}
	n.mu.Unlock()
	if err != nil {
		return Drive{}, err
	}
	for _, out := range n.Drives(ctx) {
		if out.UUID == uuid {
			return out, nil
		}
	}
	return Drive{}, &Error{Kind: NotFound, Object: name, Text: fmt.Sprintf("drive %q has just gone", name)}
}

// show is a drive with its space. REQUIRES: n.mu is held.
func (n *Node) show(d *drive) Drive {
	out := showDrive(d)
	for _, e := range n.leases {
		for _, p := range e.l.Pieces {
			if p.Drive != d.j.UUID {
				continue
			}
			if bytes := int64(p.Count) * d.j.ExtentBytes; e.l.State.Ended() {
				out.QuarantinedBytes += bytes
			} else {
				out.LeasedBytes += bytes
			}
		}
	}
	return out
}

func showDrive(d *drive) Drive {
	out := Drive{DriveInfo: d.info, State: d.state, StateWhy: d.why}
	if d.j.Path != "" {
		out.Path = d.j.Path
	}
	if d.j.UUID != "" {
		out.UUID, out.Serial, out.Model = d.j.UUID, d.j.Serial, d.j.Model
		out.ExtentBytes, out.Extents, out.Epoch = d.j.ExtentBytes, d.j.Extents, d.j.Epoch
	}
	out.CapacityBytes = int64(out.Extents) * out.ExtentBytes
	if d.state == DriveReady {
		out.FreeBytes = int64(d.space.FreeCount()) * d.j.ExtentBytes
	}
	return out
}

// Status describes the node.
type Status struct {
	NodeID        string
	StartedAt     time.Time
	Ready         bool
	ReadyWhy      string    // why no lease can be opened now
	Engine        ipc.Hello // that answered last
	Leases        map[lease.State]int
	Drives        int
	CapacityBytes int64 // of the drives that are ready
	FreeBytes     int64
	Warnings      []string
}

// Status describes the node, without asking the engine.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := Status{NodeID: n.cfg.Store.NodeID(), StartedAt: n.started, Ready: true, Engine: n.hello, Leases: map[lease.State]int{},
		Drives: len(n.drives)}
	if err := n.taking(); err != nil {
		s.Ready, s.ReadyWhy = false, err.Error()
	}
	for _, e := range n.leases {
		s.Leases[e.l.State]++
		if e.trouble != "" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("lease %s: %s", e.l.ID, e.trouble))
		}
	}
	for _, d := range n.drives {
		if d.state == DriveReady {
			s.CapacityBytes += int64(d.j.Extents) * d.j.ExtentBytes
			s.FreeBytes += int64(d.space.FreeCount()) * d.j.ExtentBytes
		} else {
			s.Warnings = append(s.Warnings, fmt.Sprintf("drive %s is %s: %s", d.j.Path, d.state, d.why))
		}
	}
	if err := n.reachable(lease.Exports{NoNBD: true, VhostUser: true}); err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	if n.warning != "" {
		s.Warnings = append(s.Warnings, n.warning)
	}
	slices.Sort(s.Warnings)
	return s
}
