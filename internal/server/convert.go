package server

import (
	"context"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node"
)

var states = map[lease.State]vacatev1.LeaseState{
	lease.Opening: vacatev1.LeaseState_LEASE_STATE_OPENING,
	lease.Open:    vacatev1.LeaseState_LEASE_STATE_OPEN,
	lease.Closing: vacatev1.LeaseState_LEASE_STATE_CLOSING,
	lease.Erased:  vacatev1.LeaseState_LEASE_STATE_ERASED,
	lease.Closed:  vacatev1.LeaseState_LEASE_STATE_CLOSED,
	lease.Lost:    vacatev1.LeaseState_LEASE_STATE_LOST,
}

// leaseMessages are leases as the API shows them: with the paths of their drives
// and the engine's counters, where they can be had.
func (s *Server) leaseMessages(ctx context.Context, all ...lease.Lease) []*vacatev1.Lease {
	if len(all) == 0 {
		return nil
	}
	paths := make(map[string]string)
	for _, d := range s.cfg.Node.Drives(ctx) {
		paths[d.UUID] = d.Path
	}
	stats := make(map[string]ipc.LeaseStats)
	// Without an engine there are no counters, and the leases are shown all the same.
	if st, err := s.cfg.Node.Stats(ctx); err == nil {
		for _, l := range st.Leases {
			stats[l.Lease] = l
		}
	}
	out := make([]*vacatev1.Lease, 0, len(all))
	for _, l := range all {
		m := leaseMessage(l, paths)
		if l.State == lease.Open {
			m.Exports = s.exportMessages(l)
			if d, ok := s.devices().Device(l.ID); ok {
				m.Device, m.DeviceKind = d.Path, d.Kind
			}
		}
		if st, ok := stats[l.ID]; ok && !l.State.Ended() {
			m.Stats = &vacatev1.LeaseStats{Connections: uint32(st.Connections), Reads: st.Reads, Writes: st.Writes, Discards: st.Discards,
				Flushes: st.Flushes, ReadBytes: st.ReadBytes, WriteBytes: st.WriteBytes, Errors: st.Errors, WrittenBytes: uint64(st.Written),
				Queues: uint32(st.Queues), BrokenQueues: st.BrokenQueues, Expelled: st.Expelled}
		}
		out = append(out, m)
	}
	return out
}

func leaseMessage(l lease.Lease, paths map[string]string) *vacatev1.Lease {
	m := &vacatev1.Lease{
		Id: l.ID, Tenant: l.Tenant, SizeBytes: l.SizeBytes, State: states[l.State], LogicalBlock: uint32(l.LogicalBlock), Uid: l.UID,
		OpenedAt: timestamp(l.OpenedAt), ExpiresAt: timestamp(l.ExpiresAt), ClosedAt: timestamp(l.ClosedAt),
		Result: string(l.Result), Text: l.Text, Space: string(l.Space), OpenSeq: l.OpenSeq, CloseSeq: l.CloseSeq,
		EraseBy: timestamp(l.Proof.EraseBy), KeyMode: l.Proof.KeyMode, KeyCommit: l.Proof.KeyCommit, KeyReleased: l.Proof.Released,
	}
	if l.Limits != (limit.Limits{}) {
		m.Limits = &vacatev1.Limits{Iops: l.Limits.IOPS, IopsBurst: l.Limits.IOPSBurst,
			BandwidthBytes: l.Limits.Bytes, BandwidthBurstBytes: l.Limits.BytesBurst}
	}
	for _, p := range l.Pieces {
		m.Pieces = append(m.Pieces, &vacatev1.Piece{Drive: paths[p.Drive], DriveUuid: p.Drive, FirstExtent: p.First, Extents: p.Count})
	}
	if len(m.Pieces) > 0 {
		m.Drive = m.Pieces[0].GetDrive()
	}
	if e := l.Erasure; e != nil && e.KeyDestroyedNs != 0 {
		m.Erasure = &vacatev1.Erasure{ReadBack: e.ReadBack, Drained: e.Drained || l.Space == lease.Free,
			Quarantined: l.State == lease.Erased && l.Space != lease.Free}
		if e.GateClosedNs != 0 {
			m.Erasure.GateToKeyDestroyedNs = e.KeyDestroyedNs - e.GateClosedNs
			if e.CiphersDoneNs != 0 {
				m.Erasure.GateToCiphersDoneNs = e.CiphersDoneNs - e.GateClosedNs
			}
		}
	}
	return m
}

// limitsOf are the limits that a caller asks for.
func limitsOf(m *vacatev1.Limits) limit.Limits {
	return limit.Limits{IOPS: m.GetIops(), IOPSBurst: m.GetIopsBurst(), Bytes: m.GetBandwidthBytes(), BytesBurst: m.GetBandwidthBurstBytes()}
}

// exportMessages are the ways to reach an open lease.
func (s *Server) exportMessages(l lease.Lease) (all []*vacatev1.Export) {
	for _, kind := range l.Exports.Kinds() {
		e := nbdExport(s.cfg.Node.SocketPath(l.ID, kind))
		if kind == lease.VhostUser {
			e = &vacatev1.Export{Kind: kind, Socket: s.cfg.Node.SocketPath(l.ID, kind),
				Queues: uint32(l.Exports.Queues), ReadOnly: l.Exports.ReadOnly}
		}
		all = append(all, e)
	}
	return all
}

// nbdExport is an NBD export over a unix socket, with the URI that nbdinfo, qemu
// and fio take (the NBD URI specification).
func nbdExport(socket string) *vacatev1.Export {
	return &vacatev1.Export{Kind: lease.NBD, Uri: "nbd+unix:///?socket=" + escapeSocket(socket), Socket: socket}
}

// escapeSocket escapes a path for the query of a URI, but leaves its slashes,
// which need no escape there (RFC 3986, 3.4), for people to read.
func escapeSocket(path string) string {
	return strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(path))
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// driveMessage is a drive as the API shows it.
func driveMessage(d node.Drive) *vacatev1.Drive {
	return &vacatev1.Drive{
		Path: d.Path, Uuid: d.UUID, Kind: d.Kind, Model: d.Model, Serial: d.Serial, Engine: d.Engine, EngineWhy: d.EngineWhy, Direct: d.Direct,
		Flush: d.Flush, FlushWhy: d.FlushWhy, SizeBytes: d.SizeBytes, FreeBytes: d.FreeBytes, LeasedBytes: d.LeasedBytes,
		QuarantinedBytes: d.QuarantinedBytes, State: string(d.State), StateWhy: d.StateWhy,
		LogicalBlock: uint32(d.LogicalBlock), PhysicalBlock: uint32(d.PhysicalBlock), ExtentBytes: d.ExtentBytes, Extents: d.Extents,
		Repaired: d.Repaired, CapacityBytes: d.CapacityBytes, Errors: d.Errors, LastError: d.LastError,
	}
}

func findingMessages(all []ipc.Finding) []*vacatev1.Finding {
	var out []*vacatev1.Finding
	for _, f := range all {
		out = append(out, &vacatev1.Finding{Code: f.Code, Text: f.Text, Refuse: f.Refuse, Force: f.Force})
	}
	return out
}
