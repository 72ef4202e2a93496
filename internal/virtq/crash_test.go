package virtq

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// An engine that is killed at a store.
type killed struct{}

// TestCrash abandons an engine after each store that a successor sees, for every
// such store, and has successors take over, which are themselves abandoned once.
// Each request is answered once, in spite of that, with nothing left in flight;
// and carried out once, or again.
func TestCrash(t *testing.T) {
	for _, newestFirst := range []bool{false, true} {
		points := 0
		for first := 1; ; first++ {
			more := false
			for second := 1; second < 25; second++ {
				if !crash(t, first, second, newestFirst) {
					break
				}
				more, points = true, points+1
			}
			if !more {
				break
			}
		}
		if points < 300 {
			t.Errorf("only %d pairs of stores", points)
		}
	}
}

// crash reports whether both engines came to their end at a store.
func crash(t *testing.T, first, second int, newestFirst bool) (both bool) {
	const requests = 9
	name := fmt.Sprintf("killed at store %d, then %d, newest first: %v", first, second, newestFirst)
	g := newGuest(t)
	d := newDriver(g, 4, 65533, true)
	table, _ := mapped(t, int(InflightSize(1, 4)))
	w := &crashWorld{t: t, name: name, d: d, table: table, requests: requests, newestFirst: newestFirst, done: map[int]int{}}
	kills := 0
	for _, at := range []int{first, second, 1 << 30} {
		if w.run(at) {
			kills++
		}
	}
	if w.answered != requests {
		t.Fatalf("%s: %d of %d requests were answered", name, w.answered, requests)
	}
	for i := range requests {
		if n := w.done[i]; n < 1 || n > 3 {
			t.Errorf("%s: request %d was carried out %d times", name, i, n)
		}
	}
	if in, err := NewInflight(table, 4); err != nil || in.Count() != 0 {
		t.Errorf("%s: %d requests are left in the table, %v", name, in.Count(), err)
	}
	return kills == 2
}

type crashWorld struct {
	t           *testing.T
	name        string
	d           *driver
	table       []byte
	newestFirst bool // the order in which they are answered

	requests, added, answered int
	done                      map[int]int // by request: how often it was carried out
}

// run is the life of one engine, and of the driver meanwhile. It reports whether
// the engine was killed.
func (w *crashWorld) run(at int) (died bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			died = true
		}
	}()
	c := w.d.config()
	var err error
	if c.Inflight, err = NewInflight(w.table, w.d.size); err != nil {
		w.t.Fatal(err)
	}
	r := newRing(w.t, c)
	left := at
	r.hook = func() {
		if left--; left == 0 {
			panic(killed{})
		}
	}
	last := -1 // of those done again: they come in their order
	for round := 0; w.answered < w.requests; round++ {
		if round > 100 {
			w.t.Fatalf("%s: requests are lost", w.name)
		}
		w.add()
		chains := w.pop(r, &last)
		for i := range chains { // in two batches
			if w.newestFirst {
				i = len(chains) - 1 - i
			}
			r.Done(chains[i], 1)
			if i%2 == 1 {
				publish(w.t, r)
			}
		}
		publish(w.t, r)
		for _, _, ok := w.d.harvest(); ok; _, _, ok = w.d.harvest() {
			w.answered++
		}
	}
	return false
}

// add makes as many requests as there is room for.
func (w *crashWorld) add() {
	for ; w.added < w.requests; w.added++ {
		where := uint64(ramC + 0x100*w.added)
		w.d.put(where, byte(w.added))
		if _, ok := w.d.add([]desc{{addr: where, len: 1}, {addr: where + 1, len: 1, flags: descWrite}}, 2, 0); !ok {
			return
		}
	}
}

// pop carries out all that there is.
func (w *crashWorld) pop(r *Ring, last *int) (chains []*Chain) {
	for {
		c := new(Chain)
		ok, err := r.Pop(c)
		if err != nil {
			w.t.Fatalf("%s: %v", w.name, err)
		}
		if !ok {
			return chains
		}
		id := int(c.Readable[0][0])
		if c.Again && id <= *last {
			w.t.Fatalf("%s: request %d is done again after %d", w.name, id, *last)
		}
		if c.Again {
			*last = id
		}
		w.done[id]++
		chains = append(chains, c)
	}
}

func publish(t *testing.T, r *Ring) {
	if _, err := r.Publish(); err != nil {
		t.Fatal(err)
	}
}

// example reads a hex dump of docs/spec/vhostuser.md.
func example(t *testing.T, name string) []byte {
	t.Helper()
	page, err := os.ReadFile("../../docs/spec/vhostuser.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)Example `" + name + "`:.*?```\n(.*?)```").FindSubmatch(page)
	if m == nil {
		t.Fatalf("no example %s", name)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(m[1])), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestInflightFormat: the table byte by byte, as docs/spec/vhostuser.md has it.
func TestInflightFormat(t *testing.T) {
	g := newGuest(t)
	d := newDriver(g, 4, 10, false)
	table, _ := mapped(t, int(InflightSize(1, 4)))
	c := d.config()
	var err error
	if c.Inflight, err = NewInflight(table, 4); err != nil {
		t.Fatal(err)
	}
	r := newRing(t, c)
	check := func(when string, want ...byte) {
		t.Helper()
		if !bytes.Equal(table[:16+4*16], want) {
			t.Errorf("%s:\n% x, want\n% x", when, table[:16+4*16], want)
		}
	}
	part := []desc{{addr: ramC, len: 1, flags: descWrite}}
	chains := make([]Chain, 3)
	for i := range chains {
		d.add(part, 1, 0)
		if ok, err := r.Pop(&chains[i]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	check("three in flight",
		0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 10, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	r.Done(&chains[2], 1)
	r.Done(&chains[1], 1)
	check("two staged", example(t, "inflight-staged")...)
	publish(t, r)
	check("two used",
		0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 1, 0, 12, 0,
		1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	c.Inflight.Reset()
	check("reset", append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0, 0}, make([]byte, 64)...)...)
	if InflightSize(1, 4) != 128 || InflightSize(3, 256) != 3*(4096+64) {
		t.Errorf("InflightSize = %d, %d", InflightSize(1, 4), InflightSize(3, 256))
	}
}
