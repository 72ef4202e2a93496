package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/proof"
)

// vectors are the values of docs/spec/journal.md, with the name that each has
// there.
func vectors(t testing.TB) map[string][]byte {
	t.Helper()
	d := drive(uuidA)
	d.State = Ready
	l := fresh(0, piece(uuidA, 10, 5), piece(uuidA, 0, 1), piece(uuidB, 7, 2))
	l.Tenant, l.Key, l.SizeBytes = "Müller & Söhne <eu>", "k1", 8<<20
	l.OpenSeq = 3
	committed := l
	committed.Proof.EraseBy = noon.Add(24 * time.Hour)
	l.Proof = lease.Proof{}
	limited := l
	limited.Limits = limit.Limits{IOPS: 500, IOPSBurst: 3000, Bytes: 200 << 20, BytesBurst: 1 << 30}
	limited.OpenLimits = limit.Limits{IOPS: 5000}
	virtual := l
	virtual.Exports = lease.Exports{NoNBD: true, VhostUser: true, ReadOnly: true, Queues: 4}
	ended := erased(l)
	ended.CloseSeq, ended.Space, ended.State = 4, lease.Free, lease.Closed

	v := map[string][]byte{}
	tb := &tables{meta: metaValue{V: Version, NodeID: strings.Repeat("07", 16), CreatedAt: noon, NextSeq: 5, LastHash: proof.ZeroHash}}
	for name, b := range payloads(t) {
		v[name] = b
	}
	tb.meta.LastHash = Hash(v["record CLOSE"])
	tb.meta.Ended = 1
	v["meta"] = encode(tb.meta)
	v["drive"] = encode(driveValue{Version, d})
	v["lease"] = encode(leaseValue{Version, l})
	v["lease, limited"] = encode(leaseValue{Version, limited})
	v["lease, for virtual machines"] = encode(leaseValue{Version, virtual})
	v["lease, committed"] = encode(leaseValue{Version, committed})
	d.Kind, d.Salt = "file", strings.Repeat("d5", 32)
	v["drive, salted"] = encode(driveValue{Version, d})
	v["spool"] = encode(spoolValue{Version, 1, 4, 3})
	v["placed"] = encode(placedValue{Version, 1066})
	v["written"] = encode(writtenValue{Version, noon})
	v["key of oflease"] = ofLeaseKey(l.ID, 4)
	v["lease, ended"] = encode(leaseValue{Version, ended})
	v["extents"] = encode(extentValue{Version, 5, l.ID, lease.Held})
	v["order"] = encode(refValue{Version, l.ID})
	uuid, err := driveKey(uuidA)
	must(t, err)
	v["key of extents"] = extentKey(uuid, 10)
	v["key of record"] = seqKey(4)
	v["key of idempotency"] = keyKey(l.Tenant, l.Key)
	return v
}

// payloads are the records of docs/spec/journal.md, as a journal writes them.
func payloads(t testing.TB) map[string][]byte {
	t.Helper()
	b := open(t, filepath.Join(t.TempDir(), "state"))
	must(t, b.AddDrive(Drive{UUID: uuidA, Path: "/dev/a1"}))
	d := drive(uuidA)
	d.Kind, d.Salt = "file", strings.Repeat("d5", 32)
	said := Testimony{Claims: []string{proof.ClaimAsserted}}
	must(t, b.FinishDrive(d, said))
	must(t, b.AddDrive(Drive{UUID: uuidB, Path: "/dev/b2"}))
	must(t, b.FinishDrive(drive(uuidB), said))
	l := fresh(0, piece(uuidA, 10, 5), piece(uuidA, 0, 1), piece(uuidB, 7, 2))
	l.Tenant, l.SizeBytes = "Müller & Söhne <eu>", 8<<20
	said = Testimony{Claims: []string{proof.ClaimKeyCommitted, proof.ClaimAsserted}, NotClaimed: []string{"drained", proof.ClaimMeasured}}
	l, err := b.OpenLease(l, said)
	must(t, err)
	said.Annex = []byte("annex")
	_, err = b.CloseLease(erased(l), false, said)
	must(t, err)
	recs, err := b.Records(0, 9)
	must(t, err)
	v := map[string][]byte{}
	for i, name := range []string{"record ENROL", "record ENROL of B", "record OPEN", "record CLOSE"} {
		v[name] = recs[i].JSON
	}
	return v
}

// TestVersion1 reads the records of version 1 that the specification has.
func TestVersion1(t *testing.T) {
	a, resized := &Auditor{}, &Auditor{}
	for i, b := range version1(t) {
		r, err := ParseRecord(b)
		must(t, err)
		if again := encode(mustDecode[recordV1](t, b)); r.V != 1 || !bytes.Equal(again, b) {
			t.Errorf("record %d is taken for %+v", i, r)
		}
		if r.Type != proof.RESIZE {
			must(t, a.Add(b))
		}
		if r.Type != proof.CLOSE {
			must(t, resized.Add(b))
		}
	}
	if a.Open() != 0 || resized.Open() != 1 {
		t.Errorf("%d and %d leases are open", a.Open(), resized.Open())
	}
}

// version1 are the records of version 1 in the specification.
func version1(t testing.TB) (all [][]byte) {
	t.Helper()
	spec, err := os.ReadFile("../../docs/spec/journal.md")
	must(t, err)
	for line := range bytes.Lines(spec) {
		if bytes.HasPrefix(line, []byte(`{"v":1,"type":`)) {
			all = append(all, bytes.TrimSpace(line))
		}
	}
	if len(all) != 5 {
		t.Fatalf("the specification has %d records of version 1", len(all))
	}
	return all
}

func mustDecode[T any](t testing.TB, b []byte) T {
	t.Helper()
	v, err := decode[T](b)
	must(t, err)
	return v
}

// TestVectors holds the specification against the code: every vector stands in
// it, binary ones in hexadecimal digits, records with their hash.
func TestVectors(t *testing.T) {
	spec, err := os.ReadFile("../../docs/spec/journal.md")
	must(t, err)
	for name, b := range vectors(t) {
		want := string(b)
		if strings.HasPrefix(name, "key") {
			want = hex.EncodeToString(b)
		}
		if !bytes.Contains(spec, []byte("\n"+want+"\n")) {
			t.Errorf("docs/spec/journal.md has no line with the vector %q:\n%s", name, want)
		}
		if strings.HasPrefix(name, "record") && !bytes.Contains(spec, []byte(Hash(b))) {
			t.Errorf("docs/spec/journal.md does not have the hash of %q: %s", name, Hash(b))
		}
	}
}

// parse decodes b as whatever value it may be.
func parse(b []byte) (n int, errs []error) {
	try := func(v any, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		n++
		if again := encode(v); !bytes.Equal(again, b) {
			panic(fmt.Sprintf("%q is taken for %q", b, again))
		}
	}
	meta, err := decode[metaValue](b)
	try(meta, err)
	d, err := decode[driveValue](b)
	try(d, err)
	l, err := decode[leaseValue](b)
	try(l, err)
	e, err := decode[extentValue](b)
	try(e, err)
	ref, err := decode[refValue](b)
	try(ref, err)
	r, err := decode[recordV1](b)
	try(r, err)
	p, err := proof.ParsePayload(b)
	if err == nil {
		again, err := proof.EncodePayload(p)
		if n++; err != nil || !bytes.Equal(again, b) {
			panic(fmt.Sprintf("%q is taken for %q, %v", b, again, err))
		}
	}
	for _, v := range []func([]byte) error{isOne[spoolValue], isOne[placedValue], isOne[writtenValue]} {
		if v(b) == nil {
			n++
		}
	}
	return n, errs
}

func isOne[T any](b []byte) error {
	_, err := decode[T](b)
	return err
}

func TestDecodeIsStrict(t *testing.T) {
	for name, b := range vectors(t) {
		if strings.HasPrefix(name, "key") {
			continue
		}
		v := `"v":1`
		if strings.HasPrefix(name, "record") {
			v = `"v":2`
		}
		if n, errs := parse(b); n != 1 {
			t.Errorf("%s: %d types take it: %v", name, n, errs)
		}
		s := string(b)
		for what, bad := range map[string]string{
			"trailing byte":  s + "\n",
			"leading blank":  " " + s,
			"inner blank":    strings.Replace(s, ":", ": ", 1),
			"duplicate key":  strings.Replace(s, v, v+","+v, 1),
			"unknown field":  strings.Replace(s, "{", `{"x":1,`, 1),
			"folded key":     strings.Replace(s, `"v"`, `"V"`, 1),
			"other version":  strings.Replace(s, v, `"v":3`, 1),
			"no version":     strings.Replace(s, v+`,`, ``, 1),
			"float":          strings.Replace(s, v, v+`.0`, 1),
			"escaped letter": strings.Replace(s, `"v"`, `"\u0076"`, 1),
			"cut off":        s[:len(s)-1],
			"array":          "[" + s + "]",
			"too long":       s + strings.Repeat(" ", maxValue),
		} {
			if n, _ := parse([]byte(bad)); n != 0 {
				t.Errorf("%s, %s: taken", name, what)
			}
		}
	}
	if _, err := decode[refValue]([]byte(`{"v":9,"lease":""}`)); !errors.Is(err, ErrVersion) {
		t.Errorf("version 9: %v", err)
	}
}

// FuzzValue decodes values of all types: no panic, and what is taken has one
// form.
func FuzzValue(f *testing.F) {
	for _, b := range vectors(f) {
		f.Add(b)
	}
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) { parse(b) })
}

// FuzzFile changes bytes of a journal's file and opens it: errors, no panic.
func FuzzFile(f *testing.F) {
	whole := specimen(f)
	f.Add(uint32(0), []byte{1})
	f.Add(uint32(4096+16), []byte{0, 0, 0, 0})
	f.Add(uint32(3*4096+8), []byte{1, 0, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, at uint32, b []byte) {
		data := bytes.Clone(whole)
		copy(data[int(at)%len(data):], b)
		err := use(t, data)
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("%v", err)
		}
	})
}

const (
	idA = "aaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbb"
)

func spaceOf(pieces ...extent.Piece) (s []proof.Space) {
	for _, p := range pieces {
		s = append(s, proof.Space{Drive: p.Drive, Extents: []proof.Range{proof.Range(p.Range)}})
	}
	return s
}

// TestAuditorRejects changes a good chain in every way that an auditor must
// notice.
func TestAuditorRejects(t *testing.T) {
	v := vectors(t)
	good := [][]byte{v["record ENROL"], v["record ENROL of B"], v["record OPEN"], v["record CLOSE"]}
	run := func(recs [][]byte) (err error) {
		a := &Auditor{}
		for _, b := range recs {
			if err = a.Add(b); err != nil {
				return err
			}
		}
		return nil
	}
	must(t, run(good))
	// chained makes records follow each other whatever is in them.
	chained := func(edit ...func(*proof.Record)) error {
		hash, seq := proof.ZeroHash, uint64(1)
		a := &Auditor{}
		for _, e := range edit {
			r := proof.Record{NodeID: strings.Repeat("07", 16), NodeSeq: seq, PrevHash: hash, Type: proof.OPEN, LeaseID: idA, Bytes: 4096,
				Space: spaceOf(piece(uuidA, 4, 4)), Cipher: proof.CipherXTS, KeyBits: proof.XTSBits, KeyMode: proof.ModeNode,
				KeyCommit: strings.Repeat("c0", 32)}
			e(&r)
			b, err := proof.EncodePayload(r)
			must(t, err)
			if err := a.Add(b); err != nil {
				return err
			}
			hash, seq = Hash(b), seq+1
		}
		return nil
	}
	same := func(*proof.Record) {}
	closes := func(r *proof.Record) { r.Type, r.OpenSeq, r.Result = proof.CLOSE, 1, proof.ResultOK }
	released := func(r *proof.Record) {
		*r = proof.Record{NodeID: r.NodeID, NodeSeq: r.NodeSeq, PrevHash: r.PrevHash, Type: proof.KeyReleased, LeaseID: r.LeaseID, OpenSeq: 1}
	}
	must(t, chained(same, released, closes, func(r *proof.Record) { r.LeaseID = idB }))
	must(t, chained(same, func(r *proof.Record) { r.LeaseID, r.Space[0].Drive = idB, uuidB }))
	for what, err := range map[string]error{
		"a gap":            run([][]byte{good[0], good[2]}),
		"no first record":  run(good[1:]),
		"a record twice":   run([][]byte{good[0], good[0]}),
		"a changed record": run([][]byte{good[0], bytes.Replace(good[1], []byte("b2b2"), []byte("b2b3"), 1), good[2]}),
		"a fork":           chained(same, func(r *proof.Record) { r.PrevHash = proof.ZeroHash }),
		"another node":     chained(same, func(r *proof.Record) { r.NodeID = strings.Repeat("08", 16) }),
		"unknown type":     run([][]byte{bytes.Replace(version1(t)[0], []byte("ENROL"), []byte("NOTE"), 1)}),
		"operator's":       run([][]byte{bytes.Replace(version1(t)[0], []byte("ENROL"), []byte("NODE_LOST"), 1)}),
		"opened twice":     chained(same, same),
		"opened again":     chained(same, closes, same),
		"closed twice":     chained(same, closes, closes),
		"never opened":     chained(func(r *proof.Record) { r.LeaseID = idB }, closes),
		"another OPEN":     chained(same, func(r *proof.Record) { r.LeaseID, r.Space = idB, spaceOf(piece(uuidB, 0, 1)) }, func(r *proof.Record) { closes(r); r.OpenSeq = 2 }),
		"other space":      chained(same, func(r *proof.Record) { closes(r); r.Space[0].Extents[0].Count = 3 }),
		"other size":       chained(same, func(r *proof.Record) { closes(r); r.Bytes++ }),
		"other key":        chained(same, func(r *proof.Record) { closes(r); r.KeyCommit = strings.Repeat("c1", 32) }),
		"nobody's key":     chained(same, closes, released),
		"overlap":          chained(same, func(r *proof.Record) { r.LeaseID, r.Space = idB, spaceOf(piece(uuidA, 7, 1)) }),
	} {
		if err == nil {
			t.Errorf("%s went through", what)
		}
	}
}

// TestL6ClaimsOnlyWhatWasObserved is law L6.
func TestL6ClaimsOnlyWhatWasObserved(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	n := 0
	ends := func(change func(*lease.Lease)) proof.Record {
		t.Helper()
		l, err := b.OpenLease(fresh(n, piece(uuidA, 0, 1)), Testimony{})
		must(t, err)
		n++
		l = erased(l)
		change(&l)
		l, err = b.CloseLease(l, true, Testimony{})
		must(t, err)
		recs, err := b.Records(l.CloseSeq-1, 1)
		must(t, err)
		r, err := ParseRecord(recs[0].JSON)
		must(t, err)
		return r
	}
	for _, tt := range []struct {
		what, events string
		change       func(*lease.Lease)
	}{
		{"all was seen", "key_generated gate_closed key_destroyed", func(*lease.Lease) {}},
		{"nobody saw the key made", "gate_closed key_destroyed", func(l *lease.Lease) { l.Erasure.KeyGeneratedNs = 0 }},
		{"a key that was not read back", "key_generated gate_closed", func(l *lease.Lease) { l.Erasure.ReadBack = false }},
		{"a lost lease", "", func(l *lease.Lease) { l.State, l.Erasure, l.Result = lease.Lost, nil, lease.LostBoot }},
	} {
		r := ends(tt.change)
		var got []string
		for _, e := range r.Events {
			if e.BootID != boot || e.MonotonicNs == 0 {
				t.Errorf("%s: event %+v", tt.what, e)
			}
			got = append(got, e.Type)
		}
		if s := strings.Join(got, " "); s != tt.events || r.Drained != (tt.what != "a lost lease") {
			t.Errorf("%s: events %q, want %q; drained %v", tt.what, s, tt.events, r.Drained)
		}
	}
}
