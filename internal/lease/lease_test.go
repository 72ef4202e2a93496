package lease

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

// TestNextEveryPair is the whole machine, written a second time: rows are
// states, columns events in the order of Events; "." cannot happen.
func TestNextEveryPair(t *testing.T) {
	const want = `
		opening  open closing closing .      lost .      .
		open     .    .       closing .      lost .      .
		closing  .    .       closing erased lost .      .
		erased   .    .       erased  .      .    erased closed
		closed   .    .       closed  .      .    .      .
		lost     .    .       lost    .      .    lost   lost`
	rows := strings.Split(strings.TrimSpace(want), "\n")
	if len(rows) != len(States) {
		t.Fatalf("%d rows, %d states", len(rows), len(States))
	}
	for i, row := range rows {
		f := strings.Fields(row)
		if len(f) != 1+len(Events) || State(f[0]) != States[i] {
			t.Fatalf("row %q does not fit state %s and %d events", row, States[i], len(Events))
		}
		for j, e := range Events {
			s := States[i]
			l := Lease{State: s}
			next, err := Next(s, e)
			if aerr := l.Apply(e); l.State != next || (aerr == nil) != (err == nil) {
				t.Errorf("%s, %s: Apply gives %s, %v; Next gives %s, %v", s, e, l.State, aerr, next, err)
			}
			var te *TransitionError
			if f[1+j] == "." {
				if !errors.As(err, &te) || next != s || te.State != s || te.Event != e {
					t.Errorf("Next(%s, %s) = %s, %v; want the same state and a TransitionError", s, e, next, err)
				}
			} else if err != nil || string(next) != f[1+j] {
				t.Errorf("Next(%s, %s) = %s, %v; want %s", s, e, next, err, f[1+j])
			}
		}
	}
	if _, err := Next("", CloseAsked); err == nil {
		t.Error("the empty state accepts an event")
	}
}

// TestNoWayBack walks the graph: law S2, and every lease can reach an end.
func TestNoWayBack(t *testing.T) {
	reach := func(from State) map[State]bool {
		seen, todo := map[State]bool{}, []State{from}
		for len(todo) > 0 {
			s := todo[0]
			todo = todo[1:]
			if seen[s] {
				continue
			}
			seen[s] = true
			for _, e := range Events {
				if next, err := Next(s, e); err == nil {
					todo = append(todo, next)
				}
			}
		}
		return seen
	}
	for _, s := range States {
		r := reach(s)
		if !r[Closed] && !r[Lost] {
			t.Errorf("no end can be reached from %s", s)
		}
		for next := range r {
			if s.Ended() && !next.Ended() {
				t.Errorf("S2: %s leads back to %s", s, next)
			}
		}
	}
}

func TestNewID(t *testing.T) {
	id, err := NewID(bytes.NewReader([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 255}))
	if err != nil || id != "aaaqeayeaudaoch7" || !ValidID(id) {
		t.Errorf("NewID = %q, %v", id, err)
	}
	if _, err := NewID(iotest.ErrReader(errors.New("no randomness"))); err == nil {
		t.Error("NewID made an id without randomness")
	}
	if _, err := NewID(bytes.NewReader(make([]byte, 9))); err == nil {
		t.Error("NewID made an id of 9 bytes")
	}
}

func TestValidID(t *testing.T) {
	for _, bad := range []string{"", "aaaqeayeaudaoch", "aaaqeayeaudaoch7a", "AAAQEAYEAUDAOCH7",
		"aaaqeayeaudaoch1", "aaaqeayeaudaoch8", "../../../../../a", "aaaqeayeaudao/h7", "aaaqeayeaudaoch\x00"} {
		if ValidID(bad) {
			t.Errorf("ValidID(%q)", bad)
		}
	}
}

func TestNames(t *testing.T) {
	tests := []struct {
		name        string
		tenant, key bool
	}{
		{"acme", true, true},
		{"Müller & Söhne <eu-1>", true, true},
		{"日本", true, true},
		{strings.Repeat("x", 128), true, true},
		{strings.Repeat("x", 129), false, false},
		{"", false, false},
		{" a", false, false},
		{"a ", false, false},
		{"a/b", false, true},
		{`a\b`, false, true},
		{"a\nb", false, false},
		{"a\x00", false, false},
		{"a\x7f", false, false},
		{"a\u202eb", false, false}, // right-to-left override
		{"a\u00a0b", false, false}, // no-break space
		{"\xff", false, false},
	}
	for _, tt := range tests {
		if err := CheckTenant(tt.name); (err == nil) != tt.tenant {
			t.Errorf("CheckTenant(%q) = %v", tt.name, err)
		}
		if err := CheckKey(tt.name); (err == nil) != tt.key {
			t.Errorf("CheckKey(%q) = %v", tt.name, err)
		}
	}
}
