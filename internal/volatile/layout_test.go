package volatile

import (
	"errors"
	"testing"

	"go.uber.org/goleak"
)

// TestFits: a program that does not know leases with a vhost-user export gets no
// table that has one, be it only the record before the present one.
func TestFits(t *testing.T) {
	table, err := CreateTable(TableHeader{Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close() //nolint:errcheck // test's end
	old, now := 0, Layout
	fits := func(want bool) {
		t.Helper()
		if err := table.Fits(&old); (err == nil) != want || err != nil && !errors.Is(err, ErrVersion) {
			t.Errorf("an older program: %v", err)
		}
		if err := table.Fits(&now); err != nil {
			t.Errorf("this program: %v", err)
		}
	}
	put := func(r Record) {
		t.Helper()
		if err := table.Put(Slots-1, r); err != nil {
			t.Fatal(err)
		}
	}
	plain := Record{
		State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 20, MapBytes: uint64(MapBytes(256, 1)), Generation: 1, UID: 1<<32 - 2,
		CiphersDoneNs: 1 << 62, Limits: Limits{IOPS: 1<<32 - 1},
	}
	copy(plain.Lease[:], "abcdefghijklmn27")
	fits(true)
	put(plain)
	fits(true)
	for _, x := range []Exports{{VhostUser: true, Queues: 1}, {VhostUser: true, Queues: MaxQueues, NoNBD: true, ReadOnly: true}} {
		with := plain
		with.Exports = x
		put(with)
		fits(false)
		put(plain)
		fits(false)
		put(plain)
		fits(true)
	}
}

// TestLinkKnows: a keeper is asked until it has said that it knows enough.
func TestLinkKnows(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	for _, known := range []uint64{0, 0, 1} {
		answered := make(chan Kind)
		go func() {
			m := recv(t, c)
			send(t, c, Message{Kind: m.Kind, Reply: true, ID: m.ID, Arg: known}, nil)
			answered <- m.Kind
		}()
		if err := l.Knows(1); (err == nil) != (known == 1) || err != nil && !errors.Is(err, ErrVersion) {
			t.Errorf("it knows %d: %v", known, err)
		}
		if kind := <-answered; kind != KindUp {
			t.Errorf("it was asked by a %v, which it may not know", kind)
		}
	}
	if err := l.Knows(1); err != nil { // nobody answers any more
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
