package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
	"vacate/proof"
)

const mib = 1 << 20

// A world is a node with everything around it. Tests run in a synctest bubble:
// time passes only when all wait.
type world struct {
	t     testing.TB
	ctx   context.Context
	f     *nodesim.Faults
	e     *nodesim.Engine
	socks *nodesim.Sockets
	dir   string
	bolt  *journal.Bolt
	store journal.Store // bolt, or what a test puts before it
	n     *Node
	clock *nodesim.Clock
	edit  func(*Config)
}

func disk(path string, extents uint32) *nodesim.Disk {
	return &nodesim.Disk{Info: ipc.DriveInfo{Path: path, Serial: "S" + filepath.Base(path), Kind: "file", Engine: "pread", Flush: "forward",
		ExtentBytes: mib, Extents: extents, SizeBytes: int64(extents+1) * mib}}
}

// bubble runs test in a world with two disks of 8 and 4 extents of 1 MiB.
func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir)
		defer w.stop()
		test(t, w)
		for _, v := range w.e.Violations() {
			t.Error(v)
		}
	})
}

func newWorld(t testing.TB, dir string) *world {
	f := &nodesim.Faults{}
	w := &world{t: t, ctx: context.Background(), f: f, dir: dir, socks: &nodesim.Sockets{F: f}, clock: &nodesim.Clock{},
		e: nodesim.NewEngine(f, disk("/a", 8), disk("/b", 4))}
	w.e.Holds, w.e.HasSpace, w.e.Released = w.holds, w.hasSpace, w.released
	return w
}

// holds is rule N1's question.
func (w *world) holds(id string) bool {
	s, err := w.bolt.Load()
	if err != nil {
		w.t.Errorf("reading the journal: %v", err)
		return false
	}
	return slices.ContainsFunc(s.Live, func(l lease.Lease) bool { return l.ID == id && l.CloseSeq == 0 })
}

// released says whether the journal has it that the key of a lease was given away.
func (w *world) released(id string) bool {
	l, err := w.bolt.Lease(id)
	return err == nil && l.Proof.Released
}

// hasSpace is rule N2's question.
func (w *world) hasSpace(id string, size int64, pieces []extent.Piece) bool {
	s, err := w.bolt.Load()
	if err != nil {
		w.t.Errorf("reading the journal: %v", err)
		return false
	}
	return slices.ContainsFunc(s.Live, func(l lease.Lease) bool {
		return l.ID == id && l.CloseSeq == 0 && l.SizeBytes == size && slices.Equal(l.Pieces, pieces)
	})
}

// start starts a control process.
func (w *world) start() error {
	var err error
	if w.bolt, err = journal.Open(journal.Options{Dir: w.dir, NoSync: true}); err != nil {
		w.t.Fatal(err)
	}
	w.store = nodesim.Store{Store: w.bolt, F: w.f}
	cfg := Config{Store: w.store, Engine: w.e, Sockets: w.socks, Clock: w.clock.Now, Boottime: w.e.Boottime, PredecessorGone: func() error { return nil }}
	if w.edit != nil {
		w.edit(&cfg)
	}
	if w.n, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	return w.n.Start(w.ctx)
}

// stop kills it. Leases stay.
func (w *world) stop() {
	if w.n == nil {
		return
	}
	w.n.Shutdown()
	if err := w.bolt.Close(); err != nil {
		w.t.Error(err)
	}
	w.n = nil
}

func (w *world) mustStart() {
	w.t.Helper()
	if err := w.start(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.mustStart()
}

// up starts a node and enrols both disks.
func (w *world) up() {
	w.t.Helper()
	w.mustStart()
	for _, path := range []string{"/a", "/b"} {
		w.must(w.n.Enroll(w.ctx, EnrollRequest{Path: path}))
	}
}

func (w *world) must(_ any, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open opens a lease of so many MiB, on the drive, if one is named.
func (w *world) open(mibs int64, drive ...string) lease.Lease {
	w.t.Helper()
	req := OpenRequest{SizeBytes: mibs * mib, Tenant: "acme"}
	if len(drive) > 0 {
		req.Drive = drive[0]
	}
	l, err := w.n.Open(w.ctx, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (w *world) close(id string) lease.Lease {
	w.t.Helper()
	l, err := w.n.Close(w.ctx, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (w *world) get(id string) lease.Lease {
	w.t.Helper()
	l, err := w.n.Get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// expect checks where a lease stands.
func (w *world) expect(id string, state lease.State, result lease.Result, space lease.Space) lease.Lease {
	w.t.Helper()
	l := w.get(id)
	if l.State != state || l.Result != result || l.Space != space {
		w.t.Errorf("lease %s is %s with result %q, space %s (%s); want %s, %q, %s", id, l.State, l.Result, l.Space, l.Text, state, result, space)
	}
	return l
}

func (w *world) free() int64 { return w.n.Status().FreeBytes / mib }

func (w *world) expectFree(mibs int64) {
	w.t.Helper()
	if got := w.free(); got != mibs {
		w.t.Errorf("%d MiB are free, want %d", got, mibs)
	}
}

// audit replays the records of the journal, and returns those of one lease.
func (w *world) audit(id string) (all int, own []proof.Record) {
	w.t.Helper()
	recs, err := w.bolt.Records(0, 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	a := &journal.Auditor{}
	for _, r := range recs {
		if err := a.Add(r.JSON); err != nil {
			w.t.Errorf("audit: %v", err)
		}
		rec, err := journal.ParseRecord(r.JSON)
		if err != nil {
			w.t.Fatal(err)
		}
		if rec.LeaseID == id {
			own = append(own, rec)
		}
	}
	if s, err := w.bolt.Load(); err != nil {
		w.t.Error(err)
	} else if open := slices.DeleteFunc(s.Live, func(l lease.Lease) bool { return l.CloseSeq != 0 }); len(open) != a.Open() {
		w.t.Errorf("the journal has %d open leases, its records have %d", len(open), a.Open())
	}
	return len(recs), own
}

// kind checks that an error is for people: of a kind, about an object, in a
// sentence.
func kind(t testing.TB, err error, want Kind) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != want || e.Text == "" {
		t.Errorf("got %v (%T), want an error of kind %s", err, err, want)
		return &Error{}
	}
	return e
}

func pieceString(pieces []extent.Piece, names map[string]string) string {
	s := ""
	for _, p := range pieces {
		s += fmt.Sprintf("%s:%d+%d ", names[p.Drive], p.First, p.Count)
	}
	return s
}
