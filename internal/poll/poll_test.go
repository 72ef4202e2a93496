package poll

import (
	"testing"
	"time"
)

// TestBudget: Y1 and Y3.
func TestBudget(t *testing.T) {
	b := New(40 * time.Microsecond)
	sleeps := func(found bool) (n int) { // until it polls again
		for {
			d := b.Begin()
			if d > b.max {
				t.Fatalf("polls for %v", d)
			}
			if d > 0 {
				b.End(found)
				return n
			}
			n++
		}
	}
	for range 100 {
		if n := sleeps(true); n != 0 {
			t.Fatalf("%d sleeps while polling pays", n)
		}
	}
	spent := 0 // polls in vain before it gives up
	for sleeps(false) == 0 {
		spent++
	}
	if spent > 4 {
		t.Errorf("polls in vain %d times before it stops", spent)
	}
	last := 0
	for range 12 {
		n := sleeps(false)
		if n < last || n >= mostPolls {
			t.Errorf("%d sleeps between trials, %d before", n, last)
		}
		last = n
	}
	if last != mostPolls-1 {
		t.Errorf("%d sleeps between trials in vain, want %d at last", last, mostPolls-1)
	}
	sleeps(true)
	if d := b.Begin(); d != b.max {
		t.Error("a success does not restore the budget")
	}
	b.End(true)
	if off := New(0); off.Begin() != 0 {
		t.Error("polls with no budget")
	}
	if n := pollers.Load(); n != 0 {
		t.Errorf("%d places are left taken", n)
	}
}

// TestBound: Y2. Who is over the bound sleeps at once, and is none the worse.
func TestBound(t *testing.T) {
	held := make([]Budget, maxPollers)
	for i := range held {
		if held[i] = New(Max); held[i].Begin() != Max {
			t.Fatalf("budget %d of %d finds no place", i, maxPollers)
		}
	}
	b := New(Max)
	for range 10 {
		if d := b.Begin(); d != 0 {
			t.Fatalf("polls for %v beyond the bound", d)
		}
	}
	held[0].End(false)
	if d := b.Begin(); d != Max {
		t.Errorf("polls for %v once there is a place, want %v", d, Max)
	}
	b.End(true)
	for i := range held[1:] {
		held[1+i].End(true)
	}
	if n := pollers.Load(); n != 0 {
		t.Errorf("%d places are left taken", n)
	}
}
