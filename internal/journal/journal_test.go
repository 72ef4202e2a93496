package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vacate/internal/extent"
	"vacate/internal/lease"
)

var (
	uuidA = strings.Repeat("a1", 16)
	uuidB = strings.Repeat("b2", 16)
	boot  = "6c7f4b0e-2a33-4d0c-9d0a-1f4bd6f6a001"
	noon  = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

// open opens a journal that does not wait for the medium.
func open(t testing.TB, dir string) *Bolt {
	t.Helper()
	b, err := Open(Options{Dir: dir, NoSync: true, KeepEnded: 3, LockTimeout: time.Millisecond,
		Rand: bytes.NewReader(bytes.Repeat([]byte{7}, 16)), Clock: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func reopen(t testing.TB, b *Bolt) *Bolt {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, b.opt.Dir)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, b *Bolt) *State {
	t.Helper()
	s, err := b.Load()
	must(t, err)
	return s
}

func drive(uuid string) Drive {
	return Drive{UUID: uuid, Path: "/dev/" + uuid[:2], Serial: "S-" + uuid[:2], ExtentBytes: 1 << 20, Extents: 100,
		Epoch: 1, EnrolledAt: noon}
}

func enrol(t testing.TB, b *Bolt, uuids ...string) {
	t.Helper()
	for _, uuid := range uuids {
		must(t, b.AddDrive(Drive{UUID: uuid, Path: "/dev/" + uuid[:2]}))
		must(t, b.FinishDrive(drive(uuid), Testimony{}))
	}
}

func piece(uuid string, first, count uint32) extent.Piece {
	return extent.Piece{Drive: uuid, Range: extent.Range{First: first, Count: count}}
}

// fresh returns lease number n, as it is before OpenLease.
func fresh(n int, pieces ...extent.Piece) lease.Lease {
	return lease.Lease{ID: fmt.Sprintf("aaaaaaaaaaaaaa%c%c", 'a'+n/26%26, 'a'+n%26), Tenant: "acme", SizeBytes: 1 << 20,
		LogicalBlock: 512, UID: 1000, Pieces: pieces, Slot: n, OpenedAt: noon,
		Origin: lease.Origin{BootID: boot, KeeperID: "k", EngineID: "e"}, State: lease.Opening, Space: lease.Held,
		Proof: lease.Proof{KeyMode: "node", KeyCommit: strings.Repeat("c0", 32), KeySalt: strings.Repeat("5a", 35),
			TenantSalt: strings.Repeat("7e", 32), KeyGeneratedNs: 5}}
}

// erased returns l after its key was destroyed.
func erased(l lease.Lease) lease.Lease {
	l.State, l.Result, l.ClosedAt = lease.Erased, lease.OK, noon.Add(time.Hour)
	l.Erasure = &lease.Erasure{BootID: boot, KeyGeneratedNs: 5, GateClosedNs: 10, CiphersDoneNs: 11, KeyDestroyedNs: 12, ReadBack: true}
	return l
}

func audit(t testing.TB, b *Bolt) *Auditor {
	t.Helper()
	a := &Auditor{}
	recs, err := b.Records(0, 1<<20)
	must(t, err)
	for i, r := range recs {
		if r.Seq != uint64(i)+1 {
			t.Fatalf("J3: record %d stands at place %d", r.Seq, i+1)
		}
		must(t, a.Add(r.JSON))
	}
	return a
}

// TestLife takes a lease through its life, and opens the journal anew after each
// step: what was written is what is read.
func TestLife(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	node := b.NodeID()
	want := &State{}
	check := func() {
		t.Helper()
		b = reopen(t, b)
		if diff := cmp.Diff(want, load(t, b)); diff != "" {
			t.Fatalf("after reopening (-want +got):\n%s", diff)
		}
		if b.NodeID() != node {
			t.Fatalf("node id changed from %s to %s", node, b.NodeID())
		}
	}
	check()

	must(t, b.AddDrive(Drive{UUID: uuidA, Path: "/dev/a1"}))
	want.Drives = []Drive{{UUID: uuidA, Path: "/dev/a1", State: Enrolling}}
	check()
	must(t, b.FinishDrive(drive(uuidA), Testimony{}))
	want.Drives = []Drive{drive(uuidA)}
	want.Drives[0].State = Ready
	check()
	must(t, b.IntendEpochs([]string{uuidA}))
	want.Drives[0].Next = 2
	check()
	must(t, b.IntendEpochs([]string{uuidA})) // not confirmed: it stays
	check()
	must(t, b.ConfirmEpochs([]string{uuidA}))
	want.Drives[0].Epoch, want.Drives[0].Next = 2, 0
	check()

	l := fresh(0, piece(uuidA, 10, 5), piece(uuidA, 0, 1))
	l.Key = "k1"
	opened, err := b.OpenLease(l, Testimony{})
	must(t, err)
	l.OpenSeq = 2 // after ENROL
	want.Live = []lease.Lease{l}
	check()
	if diff := cmp.Diff(l, opened); diff != "" {
		t.Errorf("OpenLease (-want +got):\n%s", diff)
	}

	closed, err := b.CloseLease(erased(l), false, Testimony{})
	must(t, err)
	l = erased(l)
	l.CloseSeq, l.Space = 3, lease.Cleaning
	want.Live = []lease.Lease{l}
	check()
	if diff := cmp.Diff(l, closed); diff != "" {
		t.Errorf("CloseLease (-want +got):\n%s", diff)
	}

	_, err = b.FreeSpace(l.ID)
	must(t, err)
	l.State, l.Space = lease.Closed, lease.Free
	want.Live, want.Ended = nil, []lease.Lease{l}
	check()
	if a := audit(t, b); a.Open() != 0 {
		t.Errorf("%d leases have no CLOSE", a.Open())
	}
}

// TestAskingAgain is rule J4: after an error that leaves open whether a change
// was made, asking again makes it once.
func TestAskingAgain(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	must(t, b.FinishDrive(drive(uuidA), Testimony{}))
	for n, free := range []bool{true, false} {
		l := fresh(n, piece(uuidA, uint32(10*n), 10))
		l, err := b.OpenLease(l, Testimony{})
		must(t, err)
		if _, err := b.OpenLease(fresh(n, piece(uuidA, 50, 1)), Testimony{}); !errors.Is(err, ErrExists) || !errors.Is(err, ErrUnchanged) {
			t.Fatalf("opening lease %s twice: %v", l.ID, err)
		}
		var first lease.Lease
		for i := range 3 {
			got, err := b.CloseLease(erased(l), free, Testimony{})
			must(t, err)
			if i == 0 {
				first = got
			}
			if diff := cmp.Diff(first, got); diff != "" {
				t.Errorf("closing again, free %v (-first +again):\n%s", free, diff)
			}
		}
		for range 2 {
			got, err := b.FreeSpace(l.ID)
			must(t, err)
			if got.Space != lease.Free || got.State != lease.Closed {
				t.Errorf("FreeSpace gives state %s, space %s", got.State, got.Space)
			}
		}
	}
	if _, err := b.CloseLease(erased(fresh(9)), true, Testimony{}); !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnchanged) {
		t.Errorf("closing an unknown lease: %v", err)
	}
	if _, err := b.FreeSpace("zzzzzzzzzzzzzzzz"); !errors.Is(err, ErrNotFound) {
		t.Errorf("freeing an unknown lease: %v", err)
	}
	recs, err := b.Records(0, 100)
	must(t, err)
	if len(recs) != 5 {
		t.Errorf("J4: %d records, want ENROL and two of each lease", len(recs))
	}
}

// TestSpaceHasOneHolder is rule J2.
func TestSpaceHasOneHolder(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA, uuidB)
	must(t, b.AddDrive(Drive{UUID: strings.Repeat("c3", 16)}))
	first, err := b.OpenLease(fresh(0, piece(uuidA, 10, 10), piece(uuidB, 0, 100)), Testimony{})
	must(t, err)
	refused := func() {
		t.Helper()
		for _, p := range []extent.Piece{
			piece(uuidA, 10, 10), piece(uuidA, 0, 11), piece(uuidA, 19, 1), piece(uuidA, 12, 2), piece(uuidA, 0, 100),
			piece(uuidA, 99, 2), piece(uuidA, 100, 1), piece(uuidA, 5, 0), piece(uuidB, 99, 1), piece(uuidA, 1<<31, 1<<31),
			piece(strings.Repeat("c3", 16), 0, 1), piece(strings.Repeat("d4", 16), 0, 1), piece("", 0, 1), piece(strings.ToUpper(uuidA), 0, 1),
		} {
			_, err := b.OpenLease(fresh(1, piece(uuidA, 30, 1), p), Testimony{})
			if !errors.Is(err, ErrUnchanged) {
				t.Errorf("J2: %v+%d of %q: %v", p.First, p.Count, p.Drive, err)
			}
		}
		if _, err := b.OpenLease(fresh(1, piece(uuidA, 40, 2), piece(uuidA, 41, 1)), Testimony{}); !errors.Is(err, ErrOverlap) {
			t.Errorf("J2: a lease overlaps itself: %v", err)
		}
	}
	refused()
	_, err = b.CloseLease(erased(first), false, Testimony{})
	must(t, err)
	refused() // the record is durable, but I/O may be in flight
	_, err = b.FreeSpace(first.ID)
	must(t, err)
	for i, p := range []extent.Piece{piece(uuidA, 9, 1), piece(uuidA, 20, 1), piece(uuidA, 10, 10), piece(uuidB, 0, 100)} {
		_, err := b.OpenLease(fresh(2+i, p), Testimony{})
		must(t, err)
	}
	load(t, reopen(t, b))
}

func TestIdempotencyKeys(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	n := 0
	try := func(tenant, key string) (lease.Lease, error) {
		l := fresh(n, piece(uuidA, uint32(n), 1))
		l.Tenant, l.Key = tenant, key
		n++
		return b.OpenLease(l, Testimony{})
	}
	l, err := try("acme", "k")
	must(t, err)
	if _, err := try("acme", "k"); !errors.Is(err, ErrExists) {
		t.Errorf("one key twice: %v", err)
	}
	if _, err := try("other", "k"); err != nil {
		t.Errorf("another tenant's key: %v", err)
	}
	l = erased(l)
	l.Result = lease.Failed
	_, err = b.CloseLease(l, true, Testimony{})
	must(t, err)
	if _, err := try("acme", "k"); err != nil {
		t.Errorf("the key of an opening that failed: %v", err)
	}
	load(t, reopen(t, b))
}

func TestEndedLeasesAreForgotten(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state")) // which keeps 3
	enrol(t, b, uuidA)
	for n := range 10 {
		l := fresh(n, piece(uuidA, 0, 1))
		l.Key = fmt.Sprint(n)
		l, err := b.OpenLease(l, Testimony{})
		must(t, err)
		_, err = b.CloseLease(erased(l), n%2 == 0, Testimony{})
		must(t, err)
		_, err = b.FreeSpace(l.ID)
		must(t, err)
		b = reopen(t, b)
		s := load(t, b)
		if want := min(n+1, 3); len(s.Ended) != want || s.Ended[want-1].ID != l.ID {
			t.Fatalf("after %d leases, %d are kept", n+1, len(s.Ended))
		}
	}
	must(t, b.view("", func(tb *tables) error {
		if n := tb.tx.Bucket(keysBucket).Stats().KeyN; n != 3 {
			t.Errorf("%d idempotency keys are kept, want 3", n)
		}
		return nil
	}))
	if a := audit(t, b); a.Open() != 0 {
		t.Errorf("%d leases have no CLOSE", a.Open())
	}
}

// TestManyAtOnce lets many callers share transactions, some of whom are refused.
func TestManyAtOnce(t *testing.T) {
	var mu sync.Mutex
	calls, txs := 0, 0
	b, err := Open(Options{Dir: filepath.Join(t.TempDir(), "state"), NoSync: true, Observe: func(tm Timing) {
		mu.Lock()
		defer mu.Unlock()
		calls, txs = calls+tm.Calls, txs+1
		if tm.Sync > tm.Total || tm.Calls < 1 {
			t.Errorf("timing %+v", tm)
		}
	}})
	must(t, err)
	defer b.Close()
	enrol(t, b, uuidA)
	const callers = 90
	won := make([]bool, callers)
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() {
			// Three callers want each place.
			l, err := b.OpenLease(fresh(n, piece(uuidA, uint32(n/3), 1)), Testimony{})
			if err == nil {
				won[n] = true
				_, err = b.CloseLease(erased(l), false, Testimony{})
				must(t, err)
			} else if !errors.Is(err, ErrOverlap) || !errors.Is(err, ErrUnchanged) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for place := range callers / 3 {
		winners := 0
		for _, w := range won[3*place : 3*place+3] {
			if w {
				winners++
			}
		}
		if winners != 1 {
			t.Errorf("J2: %d callers got extent %d", winners, place)
		}
	}
	if want := 3 + 2*callers/3; calls != want || txs > calls {
		t.Errorf("%d calls succeeded in %d transactions, want %d calls", calls, txs, want)
	}
	audit(t, b)
	load(t, b)
}

func TestCallsAfterClose(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	must(t, b.Close())
	must(t, b.Close())
	if err := b.AddDrive(drive(uuidA)); !errors.Is(err, ErrUnchanged) {
		t.Errorf("AddDrive after Close: %v", err)
	}
}
