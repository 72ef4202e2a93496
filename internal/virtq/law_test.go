package virtq

import "testing"

// TestL8TakeOver: the engine ends when it has shown the newer of two requests as
// used, and has the older in flight. Its successor does the older again, and that
// only.
func TestL8TakeOver(t *testing.T) {
	g := newGuest(t)
	d := newDriver(g, 4, 65534, true)
	table, _ := mapped(t, int(InflightSize(1, 4)))
	engine := func() *Ring {
		c := d.config()
		c.Base = 65534
		var err error
		if c.Inflight, err = NewInflight(table, 4); err != nil {
			t.Fatal(err)
		}
		return newRing(t, c)
	}
	var asked []*asked
	for i := range uint64(2) {
		a, ok := d.add([]desc{{addr: ramC + 16*i, len: 1}, {addr: ramC + 16*i + 1, len: 1, flags: descWrite}}, 2, 0)
		if !ok {
			t.Fatal("no room")
		}
		asked = append(asked, a)
	}
	pop := func(r *Ring) *Chain {
		c := new(Chain)
		if ok, err := r.Pop(c); err != nil {
			t.Fatal(err)
		} else if !ok {
			return nil
		}
		return c
	}
	r := engine()
	older, newer := pop(r), pop(r)
	if older.Head != asked[0].head || newer.Head != asked[1].head {
		t.Fatal("the requests came in another order")
	}
	r.Done(newer, 1)
	publish(t, r)

	r = engine()
	again := pop(r)
	if again == nil || again.Head != asked[0].head || !again.Again {
		t.Fatalf("the successor begins with %+v, want the older request again", again)
	}
	if more := pop(r); more != nil {
		t.Fatalf("then it does the request of descriptor %d", more.Head)
	}
	r.Done(again, 1)
	publish(t, r)
	for _, want := range []uint16{asked[1].head, asked[0].head} {
		if a, _, ok := d.harvest(); !ok || a.head != want {
			t.Fatalf("the driver sees %+v, %v; want descriptor %d", a, ok, want)
		}
	}
}
