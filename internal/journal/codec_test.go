package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"vacate/internal/lease"
	"vacate/internal/limit"
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
	limited := l
	limited.Limits = limit.Limits{IOPS: 500, IOPSBurst: 3000, Bytes: 200 << 20, BytesBurst: 1 << 30}
	limited.OpenLimits = limit.Limits{IOPS: 5000}
	virtual := l
	virtual.Exports = lease.Exports{NoNBD: true, VhostUser: true, ReadOnly: true, Queues: 4}
	ended := erased(l)
	ended.CloseSeq, ended.Space, ended.State = 4, lease.Free, lease.Closed

	v := map[string][]byte{}
	tb := &tables{meta: metaValue{V: Version, NodeID: strings.Repeat("07", 16), CreatedAt: noon, NextSeq: 1, LastHash: zeroHash}}
	chain := func(name string, r Record) {
		r.V, r.NodeID, r.NodeSeq, r.PrevHash = Version, tb.meta.NodeID, tb.meta.NextSeq, tb.meta.LastHash
		if r.Events == nil {
			r.Events = []Event{}
		}
		r.Claims = []string{}
		v[name] = encode(r)
		tb.meta.NextSeq++
		tb.meta.LastHash = Hash(v[name])
	}
	chain("record ENROL", enrolRecord(d))
	chain("record ENROL of B", enrolRecord(drive(uuidB)))
	chain("record OPEN", openRecord(l))
	chain("record CLOSE", closeRecord(ended))
	tb.meta.Ended = 1
	v["meta"] = encode(tb.meta)
	v["drive"] = encode(driveValue{Version, d})
	v["lease"] = encode(leaseValue{Version, l})
	v["lease, limited"] = encode(leaseValue{Version, limited})
	v["lease, for virtual machines"] = encode(leaseValue{Version, virtual})
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
	r, err := decode[Record](b)
	try(r, err)
	return n, errs
}

func TestDecodeIsStrict(t *testing.T) {
	for name, b := range vectors(t) {
		if strings.HasPrefix(name, "key") {
			continue
		}
		if n, errs := parse(b); n != 1 {
			t.Errorf("%s: %d types take it: %v", name, n, errs)
		}
		s := string(b)
		for what, bad := range map[string]string{
			"trailing byte":  s + "\n",
			"leading blank":  " " + s,
			"inner blank":    strings.Replace(s, ":", ": ", 1),
			"duplicate key":  strings.Replace(s, "{", `{"v":1,`, 1),
			"unknown field":  strings.Replace(s, "{", `{"x":1,`, 1),
			"folded key":     strings.Replace(s, `"v"`, `"V"`, 1),
			"other version":  strings.Replace(s, `"v":1`, `"v":2`, 1),
			"no version":     strings.Replace(s, `"v":1,`, ``, 1),
			"float":          strings.Replace(s, `"v":1`, `"v":1.0`, 1),
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
	chained := func(edit ...func(*Record)) error {
		hash, seq := zeroHash, uint64(1)
		a := &Auditor{}
		for _, e := range edit {
			r := Record{V: Version, NodeID: strings.Repeat("07", 16), NodeSeq: seq, PrevHash: hash, Type: OPEN, LeaseID: "a",
				Space: space(fresh(0, piece(uuidA, 4, 4)).Pieces)}
			e(&r)
			b := encode(r)
			if err := a.Add(b); err != nil {
				return err
			}
			hash, seq = Hash(b), seq+1
		}
		return nil
	}
	same := func(*Record) {}
	closes := func(r *Record) { r.Type, r.OpenSeq = CLOSE, 1 }
	must(t, chained(same, closes, func(r *Record) { r.LeaseID = "b" }))
	must(t, chained(same, func(r *Record) { r.LeaseID, r.Space[0].Drive = "b", uuidB }))
	for what, err := range map[string]error{
		"a gap":            run([][]byte{good[0], good[2]}),
		"no first record":  run(good[1:]),
		"a record twice":   run([][]byte{good[0], good[0]}),
		"a changed record": run([][]byte{good[0], bytes.Replace(good[1], []byte("b2b2"), []byte("b2b3"), 1), good[2]}),
		"a fork":           chained(same, func(r *Record) { r.PrevHash = zeroHash }),
		"another node":     chained(same, func(r *Record) { r.NodeID = strings.Repeat("08", 16) }),
		"unknown type":     chained(func(r *Record) { r.Type = "NOTE" }),
		"opened twice":     chained(same, same),
		"opened again":     chained(same, closes, same),
		"closed twice":     chained(same, closes, closes),
		"never opened":     chained(closes),
		"another OPEN":     chained(same, func(r *Record) { closes(r); r.OpenSeq = 2 }),
		"other space":      chained(same, func(r *Record) { closes(r); r.Space[0].Extents[0].Count = 3 }),
		"other size":       chained(same, func(r *Record) { closes(r); r.Bytes++ }),
		"overlap":          chained(same, func(r *Record) { r.LeaseID, r.Space = "b", space(fresh(0, piece(uuidA, 7, 1)).Pieces) }),
	} {
		if err == nil {
			t.Errorf("%s went through", what)
		}
	}
}

// TestRecordClaimsOnlyWhatWasObserved is law L6.
func TestRecordClaimsOnlyWhatWasObserved(t *testing.T) {
	l := erased(fresh(0, piece(uuidA, 0, 1)))
	types := func() string {
		var s []string
		for _, e := range closeRecord(l).Events {
			if e.BootID != boot || e.MonotonicNs == 0 {
				t.Errorf("event %+v", e)
			}
			s = append(s, e.Type)
		}
		return strings.Join(s, " ")
	}
	if got := types(); got != "key_generated gate_closed key_destroyed" {
		t.Errorf("events %s", got)
	}
	e := *l.Erasure
	l.Erasure = &e
	e0 := l.Erasure
	e0.KeyGeneratedNs = 0 // control restarted since
	if got := types(); got != "gate_closed key_destroyed" {
		t.Errorf("events %s", got)
	}
	e0.ReadBack = false
	if got := types(); got != "gate_closed" {
		t.Errorf("a key that was not read back is recorded as destroyed: %s", got)
	}
	l.Erasure, l.Result = nil, lease.LostBoot
	if r := closeRecord(l); len(r.Events) != 0 || r.Drained || r.Result != "lost_boot" {
		t.Errorf("record of a lost lease: %+v", r)
	}
}
