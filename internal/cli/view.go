package cli

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/config"
)

// The views are what -o json and -o yaml print. They are part of the interface:
// fields are added, never renamed or taken away, and golden files keep them.
// Sizes are numbers of bytes, times are RFC 3339 in UTC, durations are numbers
// with their unit in the name.

type leaseView struct {
	ID           string       `json:"id"`
	Tenant       string       `json:"tenant"`
	SizeBytes    int64        `json:"sizeBytes"`
	State        string       `json:"state"`
	Drive        string       `json:"drive"`
	Exports      []exportView `json:"exports"`
	Device       string       `json:"device"`
	OpenedAt     string       `json:"openedAt"`
	LogicalBlock uint32       `json:"logicalBlock"`
	UID          uint32       `json:"uid"`
	ExpiresAt    string       `json:"expiresAt,omitempty"`
	ClosedAt     string       `json:"closedAt,omitempty"`
	Result       string       `json:"result,omitempty"`
	Text         string       `json:"text,omitempty"`
	Space        string       `json:"space"`
	OpenSeq      uint64       `json:"openSeq"`
	CloseSeq     uint64       `json:"closeSeq,omitempty"`
	Erasure      *erasureView `json:"erasure,omitempty"`
	Pieces       []pieceView  `json:"pieces"`
	Stats        *statsView   `json:"stats,omitempty"`
	Limits       *limitsView  `json:"limits,omitempty"`
	Config       string       `json:"config,omitempty"` // with --print-config
	EraseBy      string       `json:"eraseBy,omitempty"`
	KeyMode      string       `json:"keyMode,omitempty"`
	KeyCommit    string       `json:"keyCommit,omitempty"`
	KeyReleased  bool         `json:"keyReleased,omitempty"`
	DeviceKind   string       `json:"deviceKind,omitempty"`
}

// limitsView is what a lease is held to; 0 is no limit, and no burst beyond a
// second's worth.
type limitsView struct {
	IOPS                uint64 `json:"iops"`
	IOPSBurst           uint64 `json:"iopsBurst"`
	BandwidthBytes      uint64 `json:"bandwidthBytes"`
	BandwidthBurstBytes uint64 `json:"bandwidthBurstBytes"`
}

type exportView struct {
	Kind     string `json:"kind"`
	URI      string `json:"uri"`
	Socket   string `json:"socket"`
	Queues   uint32 `json:"queues,omitempty"`   // of vhost-user
	ReadOnly bool   `json:"readOnly,omitempty"` // of vhost-user
}

type erasureView struct {
	GateToKeyDestroyedNs int64 `json:"gateToKeyDestroyedNs"`
	GateToCiphersDoneNs  int64 `json:"gateToCiphersDoneNs"`
	ReadBack             bool  `json:"readBack"`
	Drained              bool  `json:"drained"`
	Quarantined          bool  `json:"quarantined"`
}

type pieceView struct {
	Drive       string `json:"drive"`
	DriveUUID   string `json:"driveUuid"`
	FirstExtent uint32 `json:"firstExtent"`
	Extents     uint32 `json:"extents"`
}

type statsView struct {
	Connections  uint32 `json:"connections"`
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
	Discards     uint64 `json:"discards"`
	Flushes      uint64 `json:"flushes"`
	ReadBytes    uint64 `json:"readBytes"`
	WriteBytes   uint64 `json:"writeBytes"`
	Errors       uint64 `json:"errors"`
	WrittenBytes uint64 `json:"writtenBytes"`
	Queues       uint32 `json:"queues,omitempty"`       // of vhost-user, as the next two
	BrokenQueues uint64 `json:"brokenQueues,omitempty"` // given up because of what the guest had put into them
	Expelled     uint64 `json:"expelled,omitempty"`     // programs disconnected because of what they had sent
}

func leaseViewOf(l *vacatev1.Lease) leaseView {
	v := leaseView{
		ID: l.GetId(), Tenant: l.GetTenant(), SizeBytes: l.GetSizeBytes(), State: stateName(l.GetState()),
		Drive: l.GetDrive(), Exports: []exportView{}, Device: l.GetDevice(), OpenedAt: instant(l.GetOpenedAt()),
		LogicalBlock: l.GetLogicalBlock(), UID: l.GetUid(), ExpiresAt: instant(l.GetExpiresAt()), ClosedAt: instant(l.GetClosedAt()),
		Result: l.GetResult(), Text: l.GetText(), Space: l.GetSpace(), OpenSeq: l.GetOpenSeq(), CloseSeq: l.GetCloseSeq(),
		Pieces: []pieceView{}, EraseBy: instant(l.GetEraseBy()), KeyMode: l.GetKeyMode(), KeyCommit: l.GetKeyCommit(), KeyReleased: l.GetKeyReleased(),
		DeviceKind: l.GetDeviceKind(),
	}
	for _, e := range l.GetExports() {
		v.Exports = append(v.Exports, exportView{Kind: e.GetKind(), URI: e.GetUri(), Socket: e.GetSocket(),
			Queues: e.GetQueues(), ReadOnly: e.GetReadOnly()})
	}
	for _, p := range l.GetPieces() {
		v.Pieces = append(v.Pieces, pieceView{Drive: p.GetDrive(), DriveUUID: p.GetDriveUuid(), FirstExtent: p.GetFirstExtent(), Extents: p.GetExtents()})
	}
	if e := l.GetErasure(); e != nil {
		v.Erasure = &erasureView{GateToKeyDestroyedNs: e.GetGateToKeyDestroyedNs(), GateToCiphersDoneNs: e.GetGateToCiphersDoneNs(),
			ReadBack: e.GetReadBack(), Drained: e.GetDrained(), Quarantined: e.GetQuarantined()}
	}
	if s := l.GetStats(); s != nil {
		v.Stats = &statsView{Connections: s.GetConnections(), Reads: s.GetReads(), Writes: s.GetWrites(), Discards: s.GetDiscards(),
			Flushes: s.GetFlushes(), ReadBytes: s.GetReadBytes(), WriteBytes: s.GetWriteBytes(), Errors: s.GetErrors(), WrittenBytes: s.GetWrittenBytes(),
			Queues: s.GetQueues(), BrokenQueues: s.GetBrokenQueues(), Expelled: s.GetExpelled()}
	}
	if m := l.GetLimits(); m != nil {
		v.Limits = &limitsView{IOPS: m.GetIops(), IOPSBurst: m.GetIopsBurst(), BandwidthBytes: m.GetBandwidthBytes(),
			BandwidthBurstBytes: m.GetBandwidthBurstBytes()}
	}
	return v
}

func leaseViews(all []*vacatev1.Lease) []leaseView {
	vs := make([]leaseView, 0, len(all))
	for _, l := range all {
		vs = append(vs, leaseViewOf(l))
	}
	return vs
}

// stateName is "open" for LEASE_STATE_OPEN.
func stateName(s vacatev1.LeaseState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "LEASE_STATE_"))
}

// instant is a time in UTC with milliseconds; empty where there is none.
func instant(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// shortTime is a time for people.
func shortTime(t *timestamppb.Timestamp, loc *time.Location) string {
	if t == nil {
		return ""
	}
	return t.AsTime().In(loc).Format("2006-01-02 15:04:05")
}

type driveView struct {
	Path             string   `json:"path"`
	Engine           string   `json:"engine"`
	EngineWhy        string   `json:"engineWhy,omitempty"`
	Flush            string   `json:"flush"`
	SizeBytes        int64    `json:"sizeBytes"`
	FreeBytes        int64    `json:"freeBytes"`
	State            string   `json:"state"`
	StateWhy         string   `json:"stateWhy,omitempty"`
	UUID             string   `json:"uuid"`
	Kind             string   `json:"kind"`
	Model            string   `json:"model,omitempty"`
	Serial           string   `json:"serial,omitempty"`
	Direct           bool     `json:"direct"`
	FlushWhy         string   `json:"flushWhy"`
	LeasedBytes      int64    `json:"leasedBytes"`
	QuarantinedBytes int64    `json:"quarantinedBytes"`
	LogicalBlock     uint32   `json:"logicalBlock"`
	PhysicalBlock    uint32   `json:"physicalBlock"`
	ExtentBytes      int64    `json:"extentBytes"`
	Extents          uint32   `json:"extents"`
	Repaired         []string `json:"repaired,omitempty"`
	CapacityBytes    int64    `json:"capacityBytes"`
	Errors           uint64   `json:"errors"`
	LastError        string   `json:"lastError,omitempty"`
}

func driveViewOf(d *vacatev1.Drive) driveView {
	return driveView{
		Path: d.GetPath(), Engine: d.GetEngine(), EngineWhy: d.GetEngineWhy(), Flush: d.GetFlush(), SizeBytes: d.GetSizeBytes(), FreeBytes: d.GetFreeBytes(),
		State: d.GetState(), StateWhy: d.GetStateWhy(), UUID: d.GetUuid(), Kind: d.GetKind(), Model: d.GetModel(), Serial: d.GetSerial(),
		Direct: d.GetDirect(), FlushWhy: d.GetFlushWhy(), LeasedBytes: d.GetLeasedBytes(), QuarantinedBytes: d.GetQuarantinedBytes(),
		LogicalBlock: d.GetLogicalBlock(), PhysicalBlock: d.GetPhysicalBlock(), ExtentBytes: d.GetExtentBytes(), Extents: d.GetExtents(),
		Repaired: d.GetRepaired(), CapacityBytes: d.GetCapacityBytes(), Errors: d.GetErrors(), LastError: d.GetLastError(),
	}
}

type findingView struct {
	Code   string `json:"code"`
	Text   string `json:"text"`
	Refuse bool   `json:"refuse"`
	Force  bool   `json:"force"`
}

func findingViews(all []*vacatev1.Finding) []findingView {
	vs := make([]findingView, 0, len(all))
	for _, f := range all {
		vs = append(vs, findingView{Code: f.GetCode(), Text: f.GetText(), Refuse: f.GetRefuse(), Force: f.GetForce()})
	}
	return vs
}

type enrolmentView struct {
	Drive    driveView     `json:"drive"`
	Findings []findingView `json:"findings"`
	Enrolled bool          `json:"enrolled"`
}

type statusView struct {
	Version       string            `json:"version"`
	NodeID        string            `json:"nodeId"`
	StartedAt     string            `json:"startedAt"`
	Ready         bool              `json:"ready"`
	ReadyWhy      string            `json:"readyWhy,omitempty"`
	PID           int32             `json:"pid"`
	Engine        *engineView       `json:"engine"`
	Leases        map[string]uint32 `json:"leases"`
	Drives        uint32            `json:"drives"`
	CapacityBytes int64             `json:"capacityBytes"`
	FreeBytes     int64             `json:"freeBytes"`
	Connections   uint32            `json:"connections"`
	Warnings      []string          `json:"warnings"`
	DangerZone    []string          `json:"dangerZone"`
	KeeperVersion string            `json:"keeperVersion"`
	LastUpgrade   string            `json:"lastUpgrade,omitempty"`
	Binary        string            `json:"binary"`
	Devices       *devicesView      `json:"devices,omitempty"`
}

// devicesView says how leases get block devices; an empty kind: they get none.
type devicesView struct {
	Kind  string `json:"kind"`
	Why   string `json:"why,omitempty"`
	Count uint32 `json:"count"`
}

type engineView struct {
	PID            int32  `json:"pid"`
	ID             string `json:"id"`
	KeeperID       string `json:"keeperId"`
	BootID         string `json:"bootId"`
	KeyStore       string `json:"keyStore"`
	Buffers        string `json:"buffers"`
	Cipher         string `json:"cipher"`
	MaxConnections uint32 `json:"maxConnections"`
	MaxLeases      uint32 `json:"maxLeases"`
	Version        string `json:"version"`
	Generation     uint64 `json:"generation"`
	Sandbox        string `json:"sandbox"`
}

func statusViewOf(s *vacatev1.NodeServiceStatusResponse) statusView {
	v := statusView{
		Version: s.GetVersion(), NodeID: s.GetNodeId(), StartedAt: instant(s.GetStartedAt()), Ready: s.GetReady(), ReadyWhy: s.GetReadyWhy(),
		PID: s.GetPid(), Leases: s.GetLeases(), Drives: s.GetDrives(), CapacityBytes: s.GetCapacityBytes(), FreeBytes: s.GetFreeBytes(),
		Connections: s.GetConnections(), Warnings: orEmpty(s.GetWarnings()), DangerZone: orEmpty(s.GetDangerZone()),
		KeeperVersion: s.GetKeeperVersion(), LastUpgrade: s.GetLastUpgrade(), Binary: s.GetBinary(),
	}
	if v.Leases == nil {
		v.Leases = map[string]uint32{}
	}
	if d := s.GetDevices(); d != nil {
		v.Devices = &devicesView{Kind: d.GetKind(), Why: d.GetWhy(), Count: d.GetCount()}
	}
	if e := s.GetEngine(); e != nil {
		v.Engine = &engineView{PID: e.GetPid(), ID: e.GetId(), KeeperID: e.GetKeeperId(), BootID: e.GetBootId(), KeyStore: e.GetKeyStore(),
			Buffers: e.GetBuffers(), Cipher: e.GetCipher(), MaxConnections: e.GetMaxConnections(), MaxLeases: e.GetMaxLeases(),
			Version: e.GetVersion(), Generation: e.GetGeneration(), Sandbox: e.GetSandbox()}
	}
	return v
}

type stopView struct {
	Leases   []string `json:"leases"`
	Stopping bool     `json:"stopping"`
}

// configView is what --check-config prints with -o json. In YAML it prints the
// file that would give these values.
type configView struct {
	Dev             string   `json:"dev,omitempty"`
	StateDir        string   `json:"stateDir"`
	RunDir          string   `json:"runDir"`
	DriveDirs       []string `json:"driveDirs"`
	DeviceDir       string   `json:"deviceDir"`
	DriveEngine     string   `json:"driveEngine"`
	PollBudgetNs    int64    `json:"pollBudgetNs"`
	MaxConnections  int      `json:"maxConnections"`
	DrainDeadlineNs int64    `json:"drainDeadlineNs"`
	Operators       []uint32 `json:"operators"`
	Auditors        []uint32 `json:"auditors"`
	Log             struct {
		Level  string `json:"level"`
		Format string `json:"format"`
	} `json:"log"`
	Metrics struct {
		PerLease bool `json:"perLease"`
	} `json:"metrics"`
	Proof        config.Proof `json:"proof"`
	Certificates struct {
		KeepSeconds int64 `json:"keepSeconds"`
	} `json:"certificates"`
	DangerZone struct {
		Enabled      bool     `json:"enabled"`
		ForceForward []string `json:"forceForward"`
	} `json:"dangerZone"`
}

func configViewOf(c config.Config) configView {
	v := configView{Dev: c.Dev, DriveDirs: orEmpty(c.DriveDirs), Proof: c.Proof, StateDir: c.StateDir, RunDir: c.RunDir, DeviceDir: c.DeviceDir, DriveEngine: c.DriveEngine, MaxConnections: c.MaxConnections,
		PollBudgetNs: c.PollBudget.Nanoseconds(), DrainDeadlineNs: c.DrainDeadline.Nanoseconds(), Operators: orEmpty(c.Operators), Auditors: orEmpty(c.Auditors)}
	v.Log.Level, v.Log.Format = strings.ToLower(c.Log.Level.String()), c.Log.Format
	v.Metrics.PerLease = c.Metrics.PerLease
	v.Certificates.KeepSeconds = int64(c.Certificates.Keep.Seconds())
	v.DangerZone.Enabled, v.DangerZone.ForceForward = c.DangerZone.Enabled, orEmpty(c.DangerZone.ForceForward)
	return v
}

func orEmpty[E any](s []E) []E {
	if s == nil {
		return []E{}
	}
	return s
}
