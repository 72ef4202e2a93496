package control

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/proof"
)

var errReadOnly = errors.Join(journal.ErrReadOnly, syscall.EROFS)

// stored makes a journal with a drive and a lease, and returns its folder.
func stored(t *testing.T) (opt journal.Options, l lease.Lease) {
	t.Helper()
	opt = journal.Options{Dir: filepath.Join(t.TempDir(), "state"), NoSync: true}
	b, err := journal.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	uuid := strings.Repeat("a1", 16)
	d := journal.Drive{UUID: uuid, Path: "/a", ExtentBytes: 1 << 20, Extents: 8, Epoch: 1, State: journal.Ready}
	l = lease.Lease{ID: "aaaaaaaaaaaaaaaa", SizeBytes: 1 << 20, LogicalBlock: 512, State: lease.Opening, Space: lease.Held,
		Proof:    lease.Proof{KeyMode: "node", KeyCommit: strings.Repeat("c0", 32)},
		OpenedAt: time.Unix(1e9, 0).UTC(), Pieces: []extent.Piece{{Drive: uuid, Range: extent.Range{Count: 1}}}}
	if err := errors.Join(b.AddDrive(d), b.FinishDrive(d, journal.Testimony{})); err != nil {
		t.Fatal(err)
	}
	if l, err = b.OpenLease(l, journal.Testimony{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return opt, l
}

// await reads the journal, as a control does that cannot write it. The first
// tries to open it fail.
func await(t *testing.T, opt journal.Options, fails int) *waiting {
	t.Helper()
	id, s, err := journal.Read(opt)
	if err != nil {
		t.Fatal(err)
	}
	w := &waiting{nodeID: id, state: s, why: errReadOnly, log: slog.New(slog.DiscardHandler)}
	w.open = func() (journal.Store, error) {
		if fails--; fails >= 0 {
			return nil, errReadOnly
		}
		return journal.Open(opt)
	}
	return w
}

func closed(l lease.Lease) lease.Lease {
	l.State, l.Result, l.ClosedAt = lease.Erased, lease.OK, time.Unix(2e9, 0).UTC()
	return l
}

// TestWaiting: nothing is changed before the journal can be written, and then the
// same store writes it.
func TestWaiting(t *testing.T) {
	opt, l := stored(t)
	w := await(t, opt, 3)
	s, err := w.Load()
	if err != nil || len(s.Live) != 1 || s.Live[0].ID != l.ID || w.NodeID() == "" {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, err := range map[string]error{
		"AddDrive": w.AddDrive(journal.Drive{}), "DropDrive": w.DropDrive(""), "FinishDrive": w.FinishDrive(journal.Drive{}, journal.Testimony{}),
		"IntendEpochs": w.IntendEpochs(nil), "ConfirmEpochs": w.ConfirmEpochs(nil),
		"OpenLease": second(w.OpenLease(l, journal.Testimony{})), "CloseLease": second(w.CloseLease(closed(l), true, journal.Testimony{})), "ReleaseLease": second(w.ReleaseLease(l.ID, proof.Event{}, journal.Testimony{})), "Append": second(w.Append(proof.Record{})),
		"FreeSpace": second(w.FreeSpace(l.ID)),
		"Records":   second(w.Records(0, 1)),
	} {
		if !errors.Is(err, journal.ErrUnchanged) || !errors.Is(err, syscall.EROFS) || errors.Is(err, journal.ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !errors.Is(w.Unwritable(), syscall.EROFS) {
		t.Errorf("unwritable: %v", w.Unwritable())
	}
	if err := w.Close(); err != nil {
		t.Errorf("closing what is not open: %v", err)
	}
	if err := w.retry(t.Context(), time.Millisecond); !errors.Is(err, errJournalBack) {
		t.Errorf("got %v", err)
	}
	letGo(t, opt)
}

// letGo checks that the journal is open to the next control, and as it was.
func letGo(t *testing.T, opt journal.Options) {
	t.Helper()
	b, err := journal.Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := b.Load(); err != nil || len(s.Live) != 1 || s.Live[0].CloseSeq != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestWaitingWithoutJournal has only the engine's word for its leases.
func TestWaitingWithoutJournal(t *testing.T) {
	opt, l := stored(t)
	w := await(t, opt, 1)
	w.state = fromEngine(ipc.LeaseList{Leases: []ipc.LeaseStatus{{Lease: l.ID, Slot: 3}}})
	if s, err := w.Load(); err != nil || len(s.Live) != 1 || s.Live[0].ID != l.ID || s.Live[0].Slot != 3 || s.Live[0].State != lease.Opening {
		t.Errorf("%+v, %v", s, err)
	}
	if err := w.retry(t.Context(), time.Millisecond); !errors.Is(err, errJournalBack) {
		t.Errorf("got %v", err)
	}
	letGo(t, opt)
}
