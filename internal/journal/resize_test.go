package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
)

// TestResize: a lease keeps what it has and gets more, behind it; both are freed
// with it, and its records say so.
func TestResize(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA, uuidB)
	want, err := b.OpenLease(fresh(0, piece(uuidA, 4, 1)), Testimony{})
	must(t, err)
	for _, next := range [][]extent.Piece{
		{piece(uuidA, 4, 1)}, // there was room in the last extent
		{piece(uuidA, 4, 1), piece(uuidB, 0, 2)},
		{piece(uuidA, 4, 1), piece(uuidB, 0, 5)}, // it goes on
		{piece(uuidA, 4, 1), piece(uuidB, 0, 6), piece(uuidA, 5, 1), piece(uuidB, 50, 50)},
	} {
		want.OpenBytes = 1 << 20
		want.SizeBytes += 4096
		want.Pieces = next
		for range 2 { // asked again, it changes nothing
			got, err := b.ResizeLease(want.ID, want.SizeBytes, next)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Fatalf("%v\n%s", err, diff)
			}
		}
		b = reopen(t, b)
		if diff := cmp.Diff([]lease.Lease{want}, load(t, b).Live); diff != "" {
			t.Fatalf("after reopening (-want +got):\n%s", diff)
		}
		for _, p := range next {
			if _, err := b.OpenLease(fresh(1, piece(p.Drive, p.First+p.Count-1, 1)), Testimony{}); !errors.Is(err, ErrOverlap) {
				t.Errorf("J2: extent %d of what was added is given away: %v", p.First+p.Count-1, err)
			}
		}
	}
	audit(t, b)
	if recs, err := b.Records(0, 100); err != nil || len(recs) != 2+1+4 {
		t.Errorf("%d records, %v", len(recs), err)
	}
	for _, free := range []bool{false, true} {
		old := erased(fresh(0, piece(uuidA, 4, 1)))
		if now, err := b.CloseLease(old, free, Testimony{}); !free && (!errors.Is(err, ErrStale) || now.SizeBytes != want.SizeBytes) {
			t.Errorf("closed with its old size: %+v, %v", now, err)
		}
		old.SizeBytes = want.SizeBytes
		got, err := b.CloseLease(old, free, Testimony{})
		if err != nil || got.SizeBytes != want.SizeBytes || !slices.Equal(got.Pieces, want.Pieces) {
			t.Errorf("closed: %+v, %v", got, err)
		}
		got, err = b.ResizeLease(want.ID, want.SizeBytes+4096, want.Pieces)
		if got.SizeBytes != want.SizeBytes || !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnchanged) {
			t.Errorf("resizing a lease that has ended: %v", err)
		}
	}
	if a := audit(t, b); a.Open() != 0 {
		t.Errorf("%d leases are open", a.Open())
	}
	for i, p := range want.Pieces {
		if _, err := b.OpenLease(fresh(10+i, p), Testimony{}); err != nil {
			t.Errorf("piece %v is not free: %v", p, err)
		}
	}
	load(t, reopen(t, b))
}

func TestResizeRefused(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA, uuidB)
	l, err := b.OpenLease(fresh(0, piece(uuidA, 4, 1), piece(uuidA, 0, 2)), Testimony{})
	must(t, err)
	_, err = b.OpenLease(fresh(1, piece(uuidA, 7, 1)), Testimony{})
	must(t, err)
	const more = 2 << 20
	for what, tt := range map[string]struct {
		size   int64
		pieces []extent.Piece
		want   error
	}{
		"smaller":             {1<<20 - 4096, l.Pieces, nil},
		"as large, and more":  {1 << 20, append(slices.Clone(l.Pieces), piece(uuidA, 9, 1)), nil},
		"no multiple":         {more + 512, l.Pieces, nil},
		"beyond the bound":    {lease.MaxBytes + 4096, l.Pieces, nil},
		"a piece is missing":  {more, l.Pieces[:1], extent.ErrMoved},
		"another order":       {more, []extent.Piece{l.Pieces[1], l.Pieces[0]}, extent.ErrMoved},
		"the first goes on":   {more, []extent.Piece{piece(uuidA, 4, 2), l.Pieces[1]}, extent.ErrMoved},
		"another's":           {more, append(slices.Clone(l.Pieces), piece(uuidA, 6, 2)), ErrOverlap},
		"another's, going on": {more, []extent.Piece{l.Pieces[0], piece(uuidA, 0, 8)}, ErrOverlap},
		"its own":             {more, append(slices.Clone(l.Pieces), piece(uuidA, 4, 1)), ErrOverlap},
		"one twice":           {more, append(slices.Clone(l.Pieces), piece(uuidB, 4, 2), piece(uuidB, 5, 1)), ErrOverlap},
		"beyond the drive":    {more, append(slices.Clone(l.Pieces), piece(uuidA, 99, 2)), ErrOverlap},
		"no drive":            {more, append(slices.Clone(l.Pieces), piece("c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3", 0, 1)), ErrNotFound},
		"nothing":             {more, append(slices.Clone(l.Pieces), piece(uuidB, 0, 0)), ErrOverlap},
		"in too many pieces":  {more, append(slices.Clone(l.Pieces), make([]extent.Piece, lease.MaxPieces)...), nil},
		"of no lease":         {more, l.Pieces, ErrNotFound},
	} {
		id := l.ID
		if what == "of no lease" {
			id = fresh(9).ID
		}
		if _, err := b.ResizeLease(id, tt.size, tt.pieces); !errors.Is(err, ErrUnchanged) || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", what, err, tt.want)
		}
	}
	if diff := cmp.Diff(l, load(t, reopen(t, b)).Live[0]); diff != "" {
		t.Errorf("refusals changed it (-want +got):\n%s", diff)
	}
}

// TestResizeModel: whatever is opened, resized and closed, the journal opens, and
// its records pass the audit.
func TestResizeModel(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA, uuidB)
	rng := rand.New(rand.NewPCG(5, 7))
	live := map[string]lease.Lease{}
	for n := range 300 {
		p := piece([]string{uuidA, uuidB}[rng.IntN(2)], rng.Uint32N(100), 1+rng.Uint32N(4))
		switch rng.IntN(3) {
		case 0:
			if l, err := b.OpenLease(fresh(n, p), Testimony{}); err == nil {
				live[l.ID] = l
			}
		case 1:
			for id, l := range live {
				got, err := b.ResizeLease(id, l.SizeBytes+4096, extent.Join(l.Pieces, []extent.Piece{p}))
				if err == nil {
					live[id] = got
				} else if !errors.Is(err, ErrUnchanged) {
					t.Fatal(err)
				}
				break
			}
		default:
			for id, l := range live {
				_, err := b.CloseLease(erased(l), true, Testimony{})
				must(t, err)
				delete(live, id)
				break
			}
		}
	}
	b = reopen(t, b)
	s := load(t, b)
	for _, l := range s.Live {
		if diff := cmp.Diff(live[l.ID], l); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if a := audit(t, b); a.Open() != len(live) || len(s.Live) != len(live) {
		t.Errorf("%d leases are open, %d in the journal, want %d", a.Open(), len(s.Live), len(live))
	}
}

// TestResizeVectors holds the specification against the code.
func TestResizeVectors(t *testing.T) {
	spec, err := os.ReadFile("../../docs/spec/journal.md")
	must(t, err)
	v := vectors(t)
	open, err := ParseRecord(v["record OPEN"])
	must(t, err)
	l := fresh(0, extent.Join(piecesOf(open.Space), []extent.Piece{piece(uuidB, 9, 2)})...)
	l.Proof = lease.Proof{}
	l.OpenSeq, l.SizeBytes, l.OpenBytes, l.Key = 3, 10<<20, 8<<20, "k1"
	for _, want := range []string{string(encode(leaseValue{Version, l}))} {
		if !bytes.Contains(spec, []byte("\n"+want+"\n")) {
			t.Errorf("docs/spec/journal.md has no line\n%s", want)
		}
	}
}

func TestAuditorRejectsResizes(t *testing.T) {
	pieces := []extent.Piece{piece(uuidA, 4, 4)}
	chain := func(edit func(*proof.Record)) error {
		hash, a := proof.ZeroHash, &Auditor{}
		for i, r := range []proof.Record{
			{Type: proof.OPEN, LeaseID: idA, Bytes: 8, Space: spaceOf(pieces...)},
			{Type: proof.OPEN, LeaseID: idB, Bytes: 8, Space: spaceOf(piece(uuidA, 9, 1))},
			{Type: proof.RESIZE, LeaseID: idA, OpenSeq: 1, Bytes: 9, Space: spaceOf(piece(uuidA, 4, 5))},
		} {
			r.NodeID, r.NodeSeq, r.PrevHash = strings.Repeat("07", 16), uint64(i)+1, hash
			if r.Type == proof.RESIZE {
				edit(&r)
			} else {
				r.Cipher, r.KeyBits, r.KeyMode, r.KeyCommit = proof.CipherXTS, proof.XTSBits, proof.ModeNode, strings.Repeat("c0", 32)
			}
			b, err := proof.EncodePayload(r)
			must(t, err)
			if err := a.Add(b); err != nil {
				return err
			}
			hash = Hash(b)
		}
		return nil
	}
	must(t, chain(func(*proof.Record) {}))
	for what, edit := range map[string]func(*proof.Record){
		"of no lease":      func(r *proof.Record) { r.LeaseID = strings.Repeat("c", 16) },
		"of another OPEN":  func(r *proof.Record) { r.OpenSeq = 2 },
		"not larger":       func(r *proof.Record) { r.Bytes = 8 },
		"takes space away": func(r *proof.Record) { r.Space[0].Extents[0].Count = 3 },
		"moves":            func(r *proof.Record) { r.Space[0].Extents[0].First = 3 },
		"another's":        func(r *proof.Record) { r.Space[0].Extents[0].Count = 6 },
	} {
		if chain(edit) == nil {
			t.Errorf("%s: went through", what)
		}
	}
}
