package nodesim

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/limit"
)

// A Disk is a medium: it outlives engines, keepers and boots.
type Disk struct {
	Info    ipc.DriveInfo // Path, Serial, ExtentBytes, Extents
	UUID    string        // of the superblock; empty before enrolment
	Node    string
	Epoch   uint64
	Missing bool   // nothing is at its path
	Fails   bool   // it answers with errors
	Held    bool   // someone else has its fence
	Hangs   bool   // I/O begun on it does not end
	Lost    string // how completed writes may have been lost, or empty; as an engine has it open
	Late    string // the engine whose I/O is still in flight to it, or empty
}

// ending is how a lease ended, as the table remembers it.
type ending struct {
	slot    int
	erasure ipc.Erasure
}

// volume is a lease in the engine.
type volume struct {
	req     ipc.LeaseOpenRequest
	held    bool // it is not served yet
	never   bool // it was closed before it was
	erasure *ipc.Erasure
	gone    chan struct{} // closed when it has drained
}

// An Engine is engine, keeper and host in one. It holds node against the laws:
// what must never happen is kept in Violations.
type Engine struct {
	F *Faults

	mu         sync.Mutex
	boot       int
	keeper     int
	engine     int
	emptied    int // the engine before the last crash that lost all
	down       bool
	clock      int64 // of what happened last, Boottime or a little more
	start      time.Time
	disks      map[string]*Disk // by path
	open       map[string]*Disk // by UUID, in this engine
	leases     map[string]*volume
	ended      map[string]ending // by lease; kept until its slot is used again
	records    map[string]*Disk  // by UUID: the drives that the next engine opens by itself
	losses     uint64            // how many drives were lost
	news       chan struct{}     // closed and replaced when losses or the engine changed
	noReadBack int               // how many erasures fail to be read back
	keys       map[string]bool   // leases with a key, wherever it is
	violations []string

	// Holds says of a lease whether the journal holds its OPEN record and not its
	// CLOSE: what must be when it is served.
	Holds func(id string) bool

	// Released says whether the journal has it that the key of a lease was released:
	// what must be when it is.
	Released func(id string) bool

	// HasSpace says whether the journal has this size and these pieces of a lease:
	// what must be when it gets them.
	HasSpace func(id string, size int64, pieces []extent.Piece) bool
}

// NewEngine returns an engine on disks.
func NewEngine(f *Faults, disks ...*Disk) *Engine {
	e := &Engine{F: f, boot: 1, keeper: 1, engine: 1, start: time.Now(), disks: map[string]*Disk{}, news: make(chan struct{})}
	for _, d := range disks {
		e.disks[d.Info.Path] = d
	}
	e.reset()
	return e
}

func (e *Engine) reset() {
	e.open, e.records = map[string]*Disk{}, map[string]*Disk{}
	e.leases, e.ended, e.keys = map[string]*volume{}, map[string]ending{}, map[string]bool{}
}

// What may break.

// CrashEngine ends the engine and starts another, which takes over: keys, leases
// and endings stay, and drives are opened again as soon as their fence is held.
// I/O that was in flight goes on until its disk stops hanging.
func (e *Engine) CrashEngine() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.orphan()
	e.engine++
	e.open = map[string]*Disk{}
	for id, v := range e.leases { // whoever waits for it on the old engine finds it gone
		if v.held { // nobody can have written: it is taken back
			close(v.gone)
			delete(e.leases, id)
			delete(e.keys, id)
			continue
		}
		next := &volume{req: v.req, erasure: v.erasure, gone: make(chan struct{})}
		close(v.gone)
		e.leases[id] = next
	}
	e.settle()
	e.tell()
}

// GiveUp is a keeper that can bring no engine up: it destroys every key, and
// starts the next one with nothing.
func (e *Engine) GiveUp() { e.crash(0, 0) }

// CrashKeeper ends keeper and engine and starts others.
func (e *Engine) CrashKeeper() { e.crash(1, 0) }

// Reboot restarts the host.
func (e *Engine) Reboot() { e.crash(1, 1) }

func (e *Engine) crash(keeper, boot int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if boot == 0 {
		e.orphan()
	} else {
		for _, d := range e.disks {
			d.Late, d.Held = "", false
		}
	}
	for _, v := range e.leases {
		close(v.gone)
	}
	e.emptied = e.engine
	e.engine++
	e.keeper += keeper
	e.boot += boot
	for _, d := range e.disks {
		d.Lost = "" // no record of it, and no lease
	}
	e.reset()
	e.tell()
}

// orphan leaves the I/O that does not end to itself.
func (e *Engine) orphan() {
	for _, d := range e.open {
		if d.Hangs {
			d.Late = e.id()
		}
	}
}

// settle opens the drives that a take-over waits for, and lets what has drained
// go.
func (e *Engine) settle() {
	for uuid, d := range e.records {
		if e.open[uuid] == nil && !d.Missing && !d.Fails && !d.Held && d.Late == "" && d.UUID == uuid {
			e.open[uuid] = d
		}
	}
	for id, v := range e.leases {
		if v.erasure != nil && !e.busy(v) {
			e.leave(id, v)
		}
	}
}

// With lets a test change a disk.
func (e *Engine) With(path string, change func(*Disk)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.disks[path]
	change(d)
	if !d.Hangs {
		d.Late = ""
	}
	e.settle()
}

// Lose resets a disk that the engine has open: what it had completed may be lost.
func (e *Engine) Lose(path, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.disks[path]; e.open[d.UUID] == d {
		d.Lost = why
		e.tell()
	}
}

// tell wakes who waits for losses.
func (e *Engine) tell() {
	e.losses++
	close(e.news)
	e.news = make(chan struct{})
}

// Down makes every call fail, until it is set to false.
func (e *Engine) Down(down bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = down
	e.tell()
}

// FailReadBack lets the next n erasures overwrite the key without reading it
// back.
func (e *Engine) FailReadBack(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.noReadBack = n
}

// Stray opens a lease that no journal knows.
func (e *Engine) Stray(id string, slot int, pieces ...extent.Piece) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leases[id] = &volume{req: ipc.LeaseOpenRequest{Lease: id, Slot: slot, Pieces: pieces}, gone: make(chan struct{})}
	e.keys[id] = true
}

// Undo takes back a lease as an engine does that takes over from one which died
// before the opening was done.
func (e *Engine) Undo(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.leases[id].gone)
	delete(e.leases, id)
	delete(e.keys, id)
}

// What tests ask.

// Boottime is how long the host has run: its clock for keys, in nanoseconds.
func (e *Engine) Boottime() int64 { return 1 + int64(time.Since(e.start)) }

// Violations are what must never happen, and did.
func (e *Engine) Violations() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.violations)
}

// Keys are the leases whose key exists.
func (e *Engine) Keys() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.keys))
}

// Limits are what the leases that are open are held to.
func (e *Engine) Limits() map[string]limit.Limits {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string]limit.Limits{}
	for id, v := range e.leases {
		if v.erasure == nil {
			all[id] = v.req.Limits
		}
	}
	return all
}

func (e *Engine) violated(format string, args ...any) {
	e.violations = append(e.violations, fmt.Sprintf(format, args...))
}

func (e *Engine) id() string { return fmt.Sprintf("engine-%d", e.engine) }

// busy reports whether I/O of v may be in flight: a drive of its hangs, or is not
// fenced yet.
func (e *Engine) busy(v *volume) bool {
	return !v.never && slices.ContainsFunc(v.req.Pieces, func(p extent.Piece) bool { d := e.open[p.Drive]; return d == nil || d.Hangs })
}

func (e *Engine) leave(id string, v *volume) {
	delete(e.leases, id)
	v.erasure.Drained = true
	e.ended[id] = ending{v.req.Slot, *v.erasure}
	close(v.gone)
}
