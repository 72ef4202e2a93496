package blk

import "testing"

func TestFIFO(t *testing.T) {
	f := NewFIFO(3)
	rs := make([]Request, 3)
	for round := range 10 { // so that the ring wraps
		for i := range rs {
			f.Push(&rs[i])
		}
		if f.Len() != 3 {
			t.Fatalf("round %d: Len = %d", round, f.Len())
		}
		for i := range rs {
			if f.Peek() != &rs[i] {
				t.Fatalf("round %d: request %d is out of order", round, i)
			}
			f.Pop()
		}
		if f.Peek() != nil || f.Len() != 0 {
			t.Fatalf("round %d: not empty", round)
		}
		f.Push(&rs[0])
		f.Pop()
	}
	defer func() {
		if recover() == nil {
			t.Error("a push beyond the room did not panic")
		}
	}()
	for range 4 {
		f.Push(&rs[0])
	}
}

// A chain is a layer whose next child is added by the completion of the last,
// and a queue below that completes within Submit.
type chain struct {
	t       *testing.T
	f       Feeder
	left    int
	child   Request
	idle    bool
	depth   int
	batches int
}

func (c *chain) Fill() {
	if c.idle && c.left > 0 {
		c.idle = false
		c.child.Done = c
		c.f.Add(&c.child)
	}
}

func (c *chain) Complete(*Request) {
	c.f.Finished()
	c.left--
	c.idle = true
	c.f.Run(c) // as the owner's Submit would
}

func (c *chain) Submit(batch []*Request) {
	c.batches++
	if c.depth++; c.depth > 1 {
		c.t.Fatal("Submit of the queue below was entered again")
	}
	for _, r := range batch {
		r.Finish(0, 0)
	}
	c.depth--
}

func (c *chain) Reap(bool) int { return 0 }
func (c *chain) Close() error  { return nil }

func TestFeederDoesNotRecurse(t *testing.T) {
	c := &chain{t: t, left: 1000, idle: true}
	c.f = NewFeeder(c, 1)
	c.f.Run(c)
	if c.left != 0 || c.batches != 1000 || c.f.InFlight() != 0 || c.f.Running() {
		t.Errorf("%d left after %d batches, %d in flight", c.left, c.batches, c.f.InFlight())
	}
}
