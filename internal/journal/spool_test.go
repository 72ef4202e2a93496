package journal

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"vacate/internal/lease"
	"vacate/proof"
)

// signAll gives every record an envelope: its payload, in brackets.
func signAll(t testing.TB, b *Bolt) {
	t.Helper()
	for {
		part, err := b.Unsigned(3)
		must(t, err)
		if len(part) == 0 {
			return
		}
		for i, s := range part {
			part[i].Envelope = []byte("[" + string(s.JSON) + "]")
		}
		must(t, b.StoreEnvelopes(part))
	}
}

// sendAll places every envelope: record n is leaf 100+n of the log.
func sendAll(t testing.TB, b *Bolt) {
	t.Helper()
	for {
		part, err := b.Unsent(4)
		must(t, err)
		if len(part) == 0 {
			return
		}
		var placed []Placed
		for _, s := range part {
			if string(s.Envelope) != "["+string(s.JSON)+"]" {
				t.Fatalf("record %d has the envelope %.80q", s.Seq, s.Envelope)
			}
			placed = append(placed, Placed{Seq: s.Seq, Index: 100 + s.Seq})
		}
		must(t, b.Sent(placed))
	}
}

// through opens a lease and closes it.
func through(t testing.TB, b *Bolt, n int, annex string) lease.Lease {
	t.Helper()
	l, err := b.OpenLease(fresh(n, piece(uuidA, 0, 1)), Testimony{})
	must(t, err)
	l, err = b.CloseLease(erased(l), true, Testimony{Annex: []byte(annex)})
	must(t, err)
	return l
}

func stats(t testing.TB, b *Bolt) Stats {
	t.Helper()
	s, err := b.SpoolStats()
	must(t, err)
	return s
}

// TestSpool takes records through it, and opens the journal anew after each step.
func TestSpool(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	again := func() { t.Helper(); b = reopen(t, b); load(t, b) }
	if s := stats(t, b); s != (Stats{}) || s.Depth() != 0 {
		t.Errorf("an empty journal's spool: %+v", s)
	}
	if part, err := b.Unsigned(9); err != nil || len(part) != 0 {
		t.Errorf("%v, %v", part, err)
	}
	select {
	case <-b.Appended():
		t.Error("nothing was written, and it is told of")
	default:
	}
	enrol(t, b, uuidA)
	select {
	case <-b.Appended():
	default:
		t.Error("nobody is told of a record")
	}
	l := through(t, b, 0, "its annex")
	again()
	if s := stats(t, b); s != (Stats{First: 1, Last: 3, Due: 1, Oldest: noon}) || s.Depth() != 3 {
		t.Errorf("nothing signed: %+v", s)
	}
	signAll(t, b)
	again()
	if s := stats(t, b); s != (Stats{First: 1, Last: 3, Signed: 3, Due: 1, Oldest: noon}) || s.Depth() != 3 {
		t.Errorf("nothing sent: %+v", s)
	}
	if _, envelope, err := b.Placed(2); !errors.Is(err, ErrNotFound) || len(envelope) == 0 {
		t.Errorf("record 2 is placed: %q, %v", envelope, err)
	}
	must(t, b.Sent([]Placed{{1, 101}, {2, 102}}))
	again()
	if due, err := b.Due(9); err != nil || len(due) != 0 {
		t.Errorf("due before its CLOSE is in the log: %v, %v", due, err)
	}
	if s := stats(t, b); s.Sent != 2 || s.Depth() != 1 || s.Oldest != noon {
		t.Errorf("one to send: %+v", s)
	}
	sendAll(t, b)
	again()
	if p, envelope, err := b.Placed(3); err != nil || p != (Placed{3, 103}) || envelope[0] != '[' {
		t.Errorf("%+v, %q, %v", p, envelope, err)
	}
	if seqs, err := b.RecordsOf(l.ID); err != nil || !slices.Equal(seqs, []uint64{2, 3}) {
		t.Errorf("records %v, %v", seqs, err)
	}
	if _, err := b.RecordsOf("zzzzzzzzzzzzzzzz"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if got, err := b.Lease(l.ID); err != nil || got.Proof.TenantSalt != l.Proof.TenantSalt {
		t.Errorf("%+v, %v", got, err)
	}
	if due, err := b.Due(9); err != nil || !slices.Equal(due, []string{l.ID}) {
		t.Errorf("due %v, %v", due, err)
	}
	if annex, err := b.Annex(l.ID); err != nil || string(annex) != "its annex" {
		t.Errorf("%q, %v", annex, err)
	}
	for range 2 {
		must(t, b.Certified(l.ID))
		again()
	}
	if _, err := b.Annex(l.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the annex is kept: %v", err)
	}
	if s := stats(t, b); s != (Stats{First: 1, Last: 3, Signed: 3, Sent: 3}) || s.Depth() != 0 {
		t.Errorf("all done: %+v", s)
	}
}

// TestSpoolKeepsOrder: records are signed and sent in order, each once; asked again
// with the same, nothing changes, and with other it is refused.
func TestSpoolKeepsOrder(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	x := []byte("x")
	if err := b.StoreEnvelopes([]Stored{{Seq: 1, Envelope: x}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an envelope without a record: %v", err)
	}
	enrol(t, b, uuidA)
	live, err := b.OpenLease(fresh(9, piece(uuidA, 50, 1)), Testimony{})
	must(t, err)
	through(t, b, 0, "")
	refused := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || !errors.Is(err, ErrUnchanged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a gap", b.StoreEnvelopes([]Stored{{Seq: 2, Envelope: x}}), ErrNotFound)
	refused("a gap behind the first", b.StoreEnvelopes([]Stored{{Seq: 1, Envelope: x}, {Seq: 3, Envelope: x}}), ErrNotFound)
	refused("number 0", b.StoreEnvelopes([]Stored{{Seq: 0, Envelope: x}}), ErrNotFound)
	refused("an empty envelope", b.StoreEnvelopes([]Stored{{Seq: 1}}), ErrUnchanged)
	refused("a large envelope", b.StoreEnvelopes([]Stored{{Seq: 1, Envelope: make([]byte, MaxEnvelope+1)}}), ErrUnchanged)
	refused("sent, not signed", b.Sent([]Placed{{1, 0}}), ErrNotFound)
	for range 2 {
		must(t, b.StoreEnvelopes([]Stored{{Seq: 1, Envelope: x}, {Seq: 2, Envelope: x}, {Seq: 3, Envelope: x}}))
	}
	refused("another envelope", b.StoreEnvelopes([]Stored{{Seq: 2, Envelope: []byte("y")}}), ErrExists)
	refused("a record that is not there", b.StoreEnvelopes([]Stored{{Seq: 4, Envelope: x}, {Seq: 5, Envelope: x}}), ErrNotFound)
	refused("sent out of order", b.Sent([]Placed{{2, 7}}), ErrNotFound)
	for range 2 {
		must(t, b.Sent([]Placed{{1, 6}, {2, 7}}))
	}
	refused("at another place", b.Sent([]Placed{{1, 8}}), ErrExists)
	refused("certified while it is open", b.Certified(live.ID), ErrNotFound)
	must(t, b.Certified("zzzzzzzzzzzzzzzz"))
	must(t, b.StoreEnvelopes(nil))
	must(t, b.Sent(nil))
	load(t, reopen(t, b))
}

// TestOldRecordsAreForgotten: those of leases whose certificate is kept elsewhere,
// but not the newest, nor those of anything else.
func TestOldRecordsAreForgotten(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	open, err := b.OpenLease(fresh(600, piece(uuidA, 50, 1)), Testimony{})
	must(t, err)
	due := through(t, b, 601, "kept")
	const n = 560
	for i := range n {
		l := through(t, b, i, "forgotten")
		signAll(t, b)
		sendAll(t, b)
		must(t, b.Certified(l.ID))
	}
	b = reopen(t, b)
	load(t, b)
	recs, err := b.Records(0, 1<<20)
	must(t, err)
	last := stats(t, b).Last
	if want := 2*n + 4; last != uint64(want) {
		t.Fatalf("%d records were written, want %d", last, want)
	}
	// ENROL, OPEN, the two of the lease that is due, and the newest.
	if got := len(recs); got < 4+tailRecords-2 || got > 4+tailRecords+forgets || recs[0].Seq != 1 || recs[3].Seq != 4 || recs[4].Seq < 90 {
		t.Errorf("%d records are kept, the fifth is number %d", got, recs[4].Seq)
	}
	for _, id := range []string{open.ID, due.ID} {
		if seqs, err := b.RecordsOf(id); err != nil || len(seqs) == 0 {
			t.Errorf("records of lease %s: %v, %v", id, seqs, err)
		}
	}
	if _, err := b.RecordsOf(fresh(0).ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the records of the first: %v", err)
	}
	_, err = b.CloseLease(erased(open), true, Testimony{})
	must(t, err)
	if ids, err := b.Due(9); err != nil || !slices.Equal(ids, []string{due.ID}) {
		t.Errorf("due %v, %v", ids, err)
	}
}

// TestRelease: a key is released once, and no CLOSE is written that does not know it.
func TestRelease(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	l, err := b.OpenLease(fresh(0, piece(uuidA, 0, 1)), Testimony{})
	must(t, err)
	ev := proof.Event{Type: proof.EventKeyReleased, MonotonicNs: 9, BootID: boot}
	for range 2 {
		if l, err = b.ReleaseLease(l.ID, ev, Testimony{}); err != nil || !l.Proof.Released {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	unknowing := erased(l)
	unknowing.Proof.Released = false
	if now, err := b.CloseLease(unknowing, false, Testimony{}); !errors.Is(err, ErrStale) || !errors.Is(err, ErrUnchanged) || !now.Proof.Released {
		t.Errorf("closed as if the key was not released: %+v, %v", now, err)
	}
	_, err = b.CloseLease(erased(l), false, Testimony{Claims: []string{proof.ClaimAsserted}})
	must(t, err)
	_, err = b.ReleaseLease(l.ID, ev, Testimony{})
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnchanged) {
		t.Errorf("released after its end: %v", err)
	}
	recs, err := b.Records(2, 9)
	must(t, err)
	if len(recs) != 2 {
		t.Fatalf("%d records after the OPEN", len(recs))
	}
	var types []string
	for _, r := range recs {
		p, err := ParseRecord(r.JSON)
		must(t, err)
		types = append(types, fmt.Sprint(p.Type, p.Claims))
	}
	if want := []string{"KEY_RELEASED[]", "CLOSE[asserted]"}; !slices.Equal(types, want) {
		t.Errorf("records %v, want %v", types, want)
	}
	audit(t, b)
}

// TestAppend writes records that change nothing else.
func TestAppend(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	d := drive(uuidA)
	d.Salt = strings.Repeat("d5", 32)
	space, err := DriveSpace(d)
	must(t, err)
	retire := proof.Record{Type: proof.RETIRE, Bytes: 100 << 20, Space: []proof.Space{space}, Claims: []string{proof.ClaimAsserted}}
	sanitize := retire
	sanitize.Type, sanitize.Level, sanitize.Result = proof.SANITIZE, proof.LevelClear, proof.ResultFailed
	for want, r := range []proof.Record{retire, retire, sanitize, retire} {
		want := []uint64{2, 2, 3, 4}[want]
		if seq, err := b.Append(r); err != nil || seq != want {
			t.Errorf("%s: record %d, %v, want %d", r.Type, seq, err, want)
		}
	}
	for _, bad := range []proof.Record{{Type: proof.OPEN}, {Type: proof.NodeLost}, {Type: proof.KEYS}, {}} {
		if _, err := b.Append(bad); !errors.Is(err, ErrUnchanged) {
			t.Errorf("%q: %v", bad.Type, err)
		}
	}
	audit(t, b)
}

// old unpacks the journal of version 1 in testdata.
func old(t testing.TB) (dir string) {
	t.Helper()
	f, err := os.Open("testdata/journal-v1.db.gz")
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	data, err := io.ReadAll(z)
	must(t, err)
	dir = filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.WriteFile(filepath.Join(dir, fileName), data, 0o600))
	return dir
}

// TestVersion1Journal opens a journal of version 1: nothing is changed before the
// first record; then it goes on, and nothing of before is signed or sent.
func TestVersion1Journal(t *testing.T) {
	dir := old(t)
	b := open(t, dir)
	s := load(t, b)
	if len(s.Live) != 4 || len(s.Ended) != 2 || stats(t, b) != (Stats{}) {
		t.Fatalf("%d live, %d ended, %+v", len(s.Live), len(s.Ended), stats(t, b))
	}
	must(t, b.IntendEpochs([]string{uuidA}))
	b = reopen(t, b)
	must(t, b.db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket(spoolBucket) != nil {
			t.Error("it is of version 2 before there is a record")
		}
		return nil
	}))
	before, err := b.Records(0, 1000)
	must(t, err)
	first := uint64(len(before)) + 1
	for _, l := range s.Live { // opened without a commitment
		if l.CloseSeq == 0 {
			_, err := b.CloseLease(erased(l), true, Testimony{Claims: []string{proof.ClaimAsserted}})
			must(t, err)
		}
	}
	b = reopen(t, b)
	load(t, b)
	part, err := b.Unsigned(100)
	must(t, err)
	if len(part) != 2 || part[0].Seq != first || stats(t, b).First != first {
		t.Fatalf("to be signed are %d records, the first is %d of %d", len(part), part[0].Seq, first)
	}
	r, err := ParseRecord(part[0].JSON)
	must(t, err)
	if r.V != 2 || r.PrevHash != Hash(before[len(before)-1].JSON) || r.KeyCommit != "" || r.KeyMode != "" {
		t.Errorf("the first payload: %+v", r)
	}
	l, err := b.OpenLease(fresh(20, piece(uuidA, 90, 1)), Testimony{})
	must(t, err)
	_, err = b.CloseLease(erased(l), true, Testimony{})
	must(t, err)
	signAll(t, b)
	sendAll(t, b)
	audit(t, b)
	// The versions do not mix: no record of version 1 follows a payload.
	a := &Auditor{}
	recs, err := b.Records(0, 1000)
	must(t, err)
	for _, rec := range recs {
		must(t, a.Add(rec.JSON))
	}
	v1 := mustDecode[recordV1](t, before[0].JSON)
	v1.NodeSeq, v1.PrevHash = a.next, a.hash
	if err := a.Add(encode(v1)); err == nil || !strings.Contains(err.Error(), "version 1") {
		t.Errorf("a record of version 1 after payloads: %v", err)
	}
}

// TestSpoolDamage: a spool whose numbers do not fit what is there is refused.
func TestSpoolDamage(t *testing.T) {
	for what, harm := range map[string]func(tx *bbolt.Tx) error{
		"no value":           func(tx *bbolt.Tx) error { return tx.Bucket(spoolBucket).Delete(spoolKey) },
		"no bucket":          func(tx *bbolt.Tx) error { return tx.DeleteBucket(dueBucket) },
		"no spool":           func(tx *bbolt.Tx) error { return tx.DeleteBucket(spoolBucket) },
		"sent, not signed":   func(tx *bbolt.Tx) error { return putSpool(tx, spoolValue{1, 1, 2, 3}) },
		"signed, not there":  func(tx *bbolt.Tx) error { return putSpool(tx, spoolValue{1, 1, 9, 2}) },
		"signed too little":  func(tx *bbolt.Tx) error { return putSpool(tx, spoolValue{1, 1, 2, 2}) },
		"sent too little":    func(tx *bbolt.Tx) error { return putSpool(tx, spoolValue{1, 1, 3, 1}) },
		"first behind":       func(tx *bbolt.Tx) error { return putSpool(tx, spoolValue{1, 5, 3, 2}) },
		"an envelope is off": func(tx *bbolt.Tx) error { return tx.Bucket(envelopesBucket).Delete(seqKey(2)) },
		"a place is off":     func(tx *bbolt.Tx) error { return tx.Bucket(placedBucket).Delete(seqKey(1)) },
	} {
		b := open(t, filepath.Join(t.TempDir(), "state"))
		enrol(t, b, uuidA)
		through(t, b, 0, "annex")
		signAll(t, b)
		must(t, b.Sent([]Placed{{1, 101}, {2, 102}}))
		load(t, b)
		must(t, b.db.Update(harm))
		if _, err := b.Load(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func putSpool(tx *bbolt.Tx, v spoolValue) error {
	return tx.Bucket(spoolBucket).Put(spoolKey, encode(v))
}

// TestAnnexIsBounded: one that is too large does not keep its lease from ending
// with a smaller one.
func TestAnnexIsBounded(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	l, err := b.OpenLease(fresh(0, piece(uuidA, 0, 1)), Testimony{})
	must(t, err)
	large := bytes.Repeat([]byte{'a'}, MaxAnnex+1)
	if _, err := b.CloseLease(erased(l), true, Testimony{Annex: large}); !errors.Is(err, ErrUnchanged) {
		t.Errorf("%v", err)
	}
	_, err = b.CloseLease(erased(l), true, Testimony{Annex: large[1:]})
	must(t, err)
	got, err := b.Annex(l.ID)
	must(t, err)
	if diff := cmp.Diff(len(large)-1, len(got)); diff != "" {
		t.Error(diff)
	}
}
