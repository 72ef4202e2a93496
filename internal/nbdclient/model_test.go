package nbdclient

import (
	"slices"
	"testing"
)

// A bench is a model whose sectors the test sets.
type bench struct {
	t *testing.T
	m *model
	b []byte
}

func newBench(t *testing.T) *bench {
	m := newModel(stamp{lease: leaseWords("x"), seed: 1}, 4096, 16, 8)
	return &bench{t, m, make([]byte, 16*sectorSize)}
}

func (b *bench) start(slot int, cmd uint16, first, n int) *op {
	b.t.Helper()
	o := &op{slot: slot, cmd: cmd, first: first, n: n}
	if !b.m.begin(slot, o) {
		b.t.Fatalf("command %d of sectors %d+%d was refused", cmd, first, n)
	}
	return o
}

// land puts what o writes where it belongs.
func (b *bench) land(o *op) {
	for i := o.first; i < o.first+o.n; i++ {
		if o.cmd == cmdWrite {
			b.m.stampOf(i, o.state.gen()).put(b.b[i*sectorSize:])
		} else {
			clear(b.b[i*sectorSize : (i+1)*sectorSize])
		}
	}
}

func (b *bench) write(cmd uint16, first, n int) {
	o := b.start(0, cmd, first, n)
	b.land(o)
	b.m.landed(o)
}

// end lets the read o see what is there now, and returns the classes of what is wrong.
func (b *bench) end(o *op) []Class {
	o.buf = b.b[o.first*sectorSize : (o.first+o.n)*sectorSize]
	b.m.look(o)
	var all []Class
	for _, w := range b.m.check(o) {
		if w.Off < 4096 || w.Off%sectorSize != 0 || w.Expected == "" || w.Found == "" {
			b.t.Errorf("report %+v", w)
		}
		all = append(all, w.Class)
	}
	return all
}

func (b *bench) want(first, n int, classes ...Class) {
	b.t.Helper()
	if got := b.end(b.start(7, cmdRead, first, n)); !slices.Equal(got, classes) {
		b.t.Errorf("sectors %d+%d: %v, want %v", first, n, got, classes)
	}
}

func TestModelPlain(t *testing.T) {
	b := newBench(t)
	b.want(0, 16)
	b.write(cmdWrite, 2, 4)
	b.write(cmdTrim, 3, 1)
	b.write(cmdWrite, 5, 2)
	b.want(0, 16)
	before := slices.Clone(b.b)
	b.write(cmdWrite, 0, 16)
	b.want(0, 16)
	copy(b.b, before) // all of it is undone
	b.want(0, 16, Zeros, Zeros, Stale, Zeros, Stale, Stale, Stale, Zeros, Zeros, Zeros, Zeros, Zeros, Zeros, Zeros, Zeros, Zeros)
	b.want(0, 16) // each is told once
	b.write(cmdWrite, 2, 1)
	copy(b.b, before)
	b.want(0, 4, Stale) // until it is written again
}

// TestModelRefuses: V1.
func TestModelRefuses(t *testing.T) {
	b := newBench(t)
	w := b.start(1, cmdWrite, 4, 4)
	r := b.start(2, cmdRead, 0, 2)
	for _, tt := range []struct {
		cmd      uint16
		first, n int
		ok       bool
	}{
		{cmdWrite, 7, 1, false}, {cmdTrim, 3, 2, false}, {cmdWriteZeroes, 1, 1, false}, {cmdWrite, 8, 1, true},
		{cmdRead, 4, 4, true}, {cmdFlush, 0, 0, true}, {cmdWrite, 2, 2, true},
	} {
		o := &op{slot: 3, cmd: tt.cmd, first: tt.first, n: tt.n}
		if got := b.m.begin(3, o); got != tt.ok {
			t.Errorf("command %d of %d+%d: %v, want %v", tt.cmd, tt.first, tt.n, got, tt.ok)
		}
	}
	b.m.unread(r)
	b.m.landed(w)
	b.start(4, cmdTrim, 0, 2)
}

// TestModelRaces: V2. A read sees old or new, sector by sector, of what was under
// way when it began; afterwards only new.
func TestModelRaces(t *testing.T) {
	for _, landed := range []int{0, 1, 2} {
		b := newBench(t)
		b.write(cmdWrite, 0, 4)
		w := b.start(1, cmdWrite, 1, 2)
		r := b.start(2, cmdRead, 0, 4)
		half := *w
		half.n = landed
		b.land(&half)
		b.m.landed(w)
		if got := b.end(r); len(got) != 0 {
			t.Errorf("a read beside a write: %v", got)
		}
		want := []Class{Stale, Stale}
		b.want(0, 4, want[landed:]...)
	}
	b := newBench(t)
	b.write(cmdWrite, 0, 1)
	b.write(cmdWrite, 0, 1)
	w := b.start(1, cmdTrim, 0, 1)
	r := b.start(2, cmdRead, 0, 1)
	b.m.stampOf(0, 1).put(b.b)
	if got := b.end(r); !slices.Equal(got, []Class{Stale}) {
		t.Errorf("neither old nor new: %v", got)
	}
	b.m.landed(w)
}

// TestModelDoubt: V3. What was given up is there or not, each sector for itself;
// what is seen stays.
func TestModelDoubt(t *testing.T) {
	b := newBench(t)
	b.write(cmdWrite, 0, 4)
	before := slices.Clone(b.b)
	w := b.start(1, cmdWrite, 0, 4)
	b.m.giveUp(w)
	half := *w
	half.n = 2
	b.land(&half)
	b.want(0, 4)
	b.want(0, 4)
	b.land(w)
	b.want(0, 4, Late, Late) // they were not there
	copy(b.b, before)
	b.want(0, 2, Stale, Stale) // they were

	// Two in a row, and a discard: each is possible, until one was seen.
	b = newBench(t)
	b.write(cmdWrite, 0, 1)
	one := b.start(1, cmdWrite, 0, 1)
	b.m.giveUp(one)
	trim := b.start(1, cmdTrim, 0, 1)
	b.m.giveUp(trim)
	two := b.start(1, cmdWrite, 0, 1)
	r := b.start(2, cmdRead, 0, 1)
	b.land(one)
	if got := b.end(r); len(got) != 0 {
		t.Errorf("what was given up, seen beside a write: %v", got)
	}
	b.m.giveUp(two)
	b.land(trim)
	b.want(0, 1)
	b.land(two)
	b.want(0, 1, Late)
	b.write(cmdWrite, 0, 1) // settles everything
	b.land(one)
	b.want(0, 1, Stale)
}

// TestModelClaims: V4.
func TestModelClaims(t *testing.T) {
	b := newBench(t)
	r := b.start(1, cmdRead, 0, 8)
	w := &op{slot: 2, cmd: cmdTrim, first: 4, n: 4}
	if b.m.begin(2, w) {
		t.Fatal("a write began where a read is")
	}
	b.m.reserve(2, w)
	b.m.reserve(3, &op{cmd: cmdWrite, first: 0, n: 1}) // one at a time
	if b.m.begin(4, &op{slot: 4, cmd: cmdRead, first: 7, n: 2}) {
		t.Error("a read began in a claimed place")
	}
	b.start(5, cmdRead, 8, 2)
	b.m.unread(r)
	o := &op{slot: 2}
	if b.m.reserved(3, o) || !b.m.reserved(2, o) || o.cmd != cmdTrim || o.first != 4 || o.n != 4 {
		t.Fatalf("the claim is %+v", o)
	}
	if !b.m.begin(2, o) || b.m.reserved(2, o) {
		t.Error("the claim was not used, or not given back")
	}
	b.m.landed(o)
	b.start(4, cmdRead, 7, 2)
}

// TestModelMixed: a sector that is read while it is written may be some of both, and
// nothing else; once the write has landed it may not.
func TestModelMixed(t *testing.T) {
	b := newBench(t)
	b.write(cmdWrite, 0, 2)
	older := slices.Clone(b.b[:sectorSize])
	w := b.start(1, cmdWrite, 0, 1)
	r := b.start(2, cmdRead, 0, 2)
	b.land(w)
	copy(b.b[64:], older[64:])
	if got := b.end(r); got != nil {
		t.Errorf("some of both: %v", got)
	}
	r = b.start(2, cmdRead, 0, 2)
	b.b[70] ^= 1 // where the reader met the writer
	if got := b.end(r); got != nil {
		t.Errorf("some of both, and the block between: %v", got)
	}
	r = b.start(2, cmdRead, 0, 2)
	b.b[200], b.b[300] = b.b[200]^1, b.b[300]^1
	if got := b.end(r); !slices.Equal(got, []Class{Garbage}) {
		t.Errorf("three blocks of neither: %v", got)
	}
	b.m.landed(w)
	b.land(w)
	copy(b.b[64:], older[64:sectorSize])
	if got := b.end(b.start(2, cmdRead, 0, 2)); !slices.Equal(got, []Class{Torn}) {
		t.Errorf("after it has landed: %v", got)
	}
}
