package nbdclient

import (
	"context"
	"time"
)

// A Book draws the requests of a [Verify] and judges their answers, for clients of
// other protocols: they carry the requests out, on as many lanes as the Verify has
// Connections, each with Depth of them at a time.
//
// A lane's methods belong to one goroutine; the others may be called from any.
type Book struct{ r *verifier }

// A Task is one request of a [Book].
type Task struct {
	Kind     Kind
	Off, Len int64  // bytes
	Buf      []byte // of a write what to write, of a read where to
	op       op
}

// A Kind says what a [Task] asks for.
type Kind uint16

// The kinds.
const (
	Read        Kind = cmdRead
	Write       Kind = cmdWrite
	Flush       Kind = cmdFlush
	Trim        Kind = cmdTrim
	WriteZeroes Kind = cmdWriteZeroes
)

func (k Kind) String() string { return commandNames[uint16(k)] }

// Book begins a run over an export of size bytes, in units of at least 512. Of the
// fields of v, those that say how to connect are not used.
func (v *Verify) Book(ctx context.Context, size int64, unit int) (*Book, error) {
	v.setDefaults()
	r := &verifier{Verify: v, load: ctx, start: time.Now(), done: make(chan struct{})}
	r.report.Seed, r.report.Connections = v.Seed, int64(v.Connections)
	if err := v.validate(); err != nil {
		return nil, err
	}
	export := &Client{size: size, blockSizes: [3]uint32{uint32(unit)}}
	if err := v.fit(export); err != nil {
		return nil, err
	}
	for i := range v.Connections {
		r.workers = append(r.workers, newWorker(r, i))
	}
	r.step = v.unit(export)
	r.model = newModel(stamp{lease: leaseWords(v.Lease), seed: v.Seed}, v.Off, int(v.Span/sectorSize), v.Connections*v.Depth)
	v.now.Store(r)
	return &Book{r: r}, nil
}

// Task returns the n-th task of a lane, with a buffer in which it keeps its data
// from then on. REQUIRES: n < Depth, len(buf) ≥ MaxRequest.
func (b *Book) Task(lane, n int, buf []byte) *Task {
	if len(buf) < b.r.MaxRequest {
		panic("nbdclient: a buffer that does not hold the longest request")
	}
	return &Task{op: op{slot: lane*b.r.Depth + n, buf: buf}}
}

// Draw makes t, of which nothing is under way, the lane's next request; false says
// that there is none: the load is over, or the last pass.
func (b *Book) Draw(lane int, t *Task) bool {
	w := b.r.workers[lane]
	next := (*worker).draw
	if b.r.last.Load() {
		next = (*worker).sweep
	}
	if !next(w, &t.op) {
		return false
	}
	t.Kind, t.Off, t.Len = Kind(t.op.cmd), b.r.model.stampOf(t.op.first, 0).off, int64(t.op.length())
	t.Buf = nil
	if t.Kind == Read || t.Kind == Write {
		t.Buf = t.op.buf
	}
	return true
}

// Answered judges t, which was answered. err is nil, or unwraps to an errno.
func (b *Book) Answered(lane int, t *Task, err error) { b.r.workers[lane].judge(&t.op, err) }

// Last begins the last pass, which reads everything once. Nothing is under way.
func (b *Book) Last() {
	r := b.r
	r.mu.Lock()
	r.report.Elapsed = time.Since(r.start)
	r.mu.Unlock()
	r.last.Store(true)
	r.model.claim = claim{}
}

// Stalled notes that a lane waited for an answer from start to now.
func (b *Book) Stalled(lane int, start time.Time, broken bool) {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.r.report.addStall(Stall{Connection: lane, Start: start, Duration: time.Since(start), Broken: broken})
}

// Reconnected notes that the session was taken up over a new connection.
func (b *Book) Reconnected() {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.r.report.Reconnects++
}

// Nonsense notes an answer that made no sense.
func (b *Book) Nonsense(err error) {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.r.report.Nonsense++
	if b.r.report.FirstNonsense == nil {
		b.r.report.FirstNonsense = err
	}
}

// Fail ends the run for err: [Book.Err] returns it from then on.
func (b *Book) Fail(err error) {
	b.r.once.Do(func() {
		b.r.why = err
		close(b.r.done)
	})
}

// Failed is closed when the run has failed.
func (b *Book) Failed() <-chan struct{} { return b.r.done }

// Err returns why the run has failed; nil if it has not.
func (b *Book) Err() error { return b.r.given() }

// Report returns what was seen so far.
func (b *Book) Report() Report { return b.r.snapshot() }
