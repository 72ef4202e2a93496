// Package bench holds what `vacate bench` is about: what is to be measured, what
// came out, and the plot of it. It measures nothing (package bench/measure does).
package bench

import (
	"fmt"
	"time"
)

// A Workload is one way to use a disk.
type Workload struct {
	Write      bool
	Random     bool // else one block after the other
	BlockBytes int  // bytes a request
	Depth      int  // requests in flight
}

// Workloads are what is measured, in the order of the table.
func Workloads() []Workload {
	var all []Workload
	for _, depth := range []int{1, 32} {
		for _, write := range []bool{false, true} {
			all = append(all, Workload{Write: write, Random: true, BlockBytes: 4 << 10, Depth: depth})
		}
	}
	for _, depth := range []int{1, 32} {
		for _, write := range []bool{false, true} {
			all = append(all, Workload{Write: write, BlockBytes: 128 << 10, Depth: depth})
		}
	}
	return all
}

// Op is "read" or "write".
func (w Workload) Op() string {
	if w.Write {
		return "write"
	}
	return "read"
}

// Order is "random" or "sequential".
func (w Workload) Order() string {
	if w.Random {
		return "random"
	}
	return "sequential"
}

func (w Workload) String() string {
	return fmt.Sprintf("%dK %s %ss, depth %d", w.BlockBytes>>10, w.Order(), w.Op(), w.Depth)
}

// A Figure is what one side did under one workload.
type Figure struct {
	Requests       int64   `json:"requests"` // answered, with or without an error
	PerSecond      float64 `json:"requestsPerSecond"`
	BytesPerSecond float64 `json:"bytesPerSecond"` // of requests without an error
	P50Ns          int64   `json:"p50Ns"`          // of a request
	P99Ns          int64   `json:"p99Ns"`
	Errors         int64   `json:"errors"`
	FirstError     string  `json:"firstError,omitempty"`
}

// A Row compares the two sides under one workload.
type Row struct {
	Name       string  `json:"name"`
	Op         string  `json:"op"`
	Order      string  `json:"order"`
	BlockBytes int     `json:"blockBytes"`
	Depth      int     `json:"depth"`
	Raw        Figure  `json:"raw"`
	Volume     Figure  `json:"volume"`
	Ratio      float64 `json:"ratio"` // volume to raw, by bytes a second; 0 if raw has done nothing
}

// NewRow makes a row of both figures.
func NewRow(w Workload, raw, volume Figure) Row {
	r := Row{Name: w.String(), Op: w.Op(), Order: w.Order(), BlockBytes: w.BlockBytes, Depth: w.Depth, Raw: raw, Volume: volume}
	if raw.BytesPerSecond > 0 {
		r.Ratio = volume.BytesPerSecond / raw.BytesPerSecond
	}
	return r
}

// A Speed is how fast the processor does something on one core.
type Speed struct {
	Name           string  `json:"name"`
	Used           bool    `json:"used"` // by volumes, on this host
	BytesPerSecond float64 `json:"bytesPerSecond"`
}

// A Finding is a fact about a device that speaks against using it, or is worth
// knowing.
type Finding struct {
	Code   string `json:"code"`
	Text   string `json:"text"`
	Refuse bool   `json:"refuse"`
}

// Options are what the user asked for.
type Options struct {
	Path string        // a folder or a block device; as typed
	Span int64         // bytes of the drive that either side uses
	Each time.Duration // of each workload on each side
}

// Bounds of Options.
const (
	MinSpan = 16 << 20 // bytes
	MaxSpan = 1 << 44
	MinEach = 100 * time.Millisecond
	MaxEach = time.Hour
)

// A Plan is what a run would do. The one who made it has looked at what is there,
// and changed nothing.
type Plan struct {
	Path      string        `json:"path"`   // absolute
	Device    bool          `json:"device"` // else a folder, which gets one temporary file
	Kind      string        `json:"kind"`
	Model     string        `json:"model,omitempty"`
	SpanBytes int64         `json:"spanBytes"` // that either side uses
	AreaBytes int64         `json:"areaBytes"` // of the file, or from the start of the device
	FreeBytes int64         `json:"freeBytes"` // of the folder's file system; of a device, its size
	Each      time.Duration `json:"eachNs"`    // of each workload on each side
	Takes     time.Duration `json:"takesNs"`   // about, all of it
	Findings  []Finding     `json:"findings"`
}

// Refused returns the findings that forbid the run.
func (p Plan) Refused() (all []Finding) {
	for _, f := range p.Findings {
		if f.Refuse {
			all = append(all, f)
		}
	}
	return all
}

// A Drive is what was measured, as the daemon saw it.
type Drive struct {
	Path      string `json:"path"` // as asked for: the folder or the device
	Kind      string `json:"kind"`
	Model     string `json:"model,omitempty"`
	Engine    string `json:"engine"` // how the volume's requests reach it
	EngineWhy string `json:"engineWhy,omitempty"`
	RawEngine string `json:"rawEngine"` // how the raw requests do
	Direct    bool   `json:"direct"`    // past the page cache, both of them
	Flush     string `json:"flush"`
	SpanBytes int64  `json:"spanBytes"`
}

// A Host is where it was measured.
type Host struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"` // that the program may use
	Kernel    string `json:"kernel"`
	Version   string `json:"version"` // of Vacate
}

// A Report is what came out.
type Report struct {
	StartedAt string        `json:"startedAt"` // UTC, RFC 3339
	Host      Host          `json:"host"`
	Drive     Drive         `json:"drive"`
	Each      time.Duration `json:"eachNs"` // of each workload on each side
	Rows      []Row         `json:"rows"`
	Processor []Speed       `json:"processor"`
	Errors    int64         `json:"errors"` // of all requests of both sides
}

// CountErrors sets Errors.
func (r *Report) CountErrors() {
	r.Errors = 0
	for _, row := range r.Rows {
		r.Errors += row.Raw.Errors + row.Volume.Errors
	}
}

// An Event says what a run is about to do next.
type Event struct {
	What string
	// The step reaches from Begin to End of Total: planned times, of which those
	// of steps without a fixed length are guesses.
	Begin, End, Total time.Duration
}
