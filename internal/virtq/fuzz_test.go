package virtq

import (
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"
)

// FuzzRing has a ring of eight in memory that consists of two regions side by
// side, which hold whatever bytes. Whatever Pop hands out is guest memory, each
// head once, and no more than the ring can hold; all else is an error of the ring.
func FuzzRing(f *testing.F) {
	const size, split = 8, 0x180
	image := func(avail uint16, descs ...desc) []byte {
		b := make([]byte, 0x300)
		for i, d := range descs {
			at := b[16*i:]
			binary.LittleEndian.PutUint64(at, d.addr)
			binary.LittleEndian.PutUint32(at[8:], d.len)
			binary.LittleEndian.PutUint16(at[12:], d.flags)
			binary.LittleEndian.PutUint16(at[14:], d.next)
		}
		binary.LittleEndian.PutUint16(b[0x80+2:], avail)
		for i := range uint16(size) {
			binary.LittleEndian.PutUint16(b[0x80+4+2*i:], i)
		}
		return b
	}
	f.Add(byte(0), image(1, desc{0x1200, 16, 0, 0}))
	f.Add(byte(1), image(8, desc{0x1170, 0x20, descWrite, 0}, desc{0x1200, 1, descNext, 2}, desc{0x1200, 1, descWrite, 0}))
	f.Add(byte(3), image(2, desc{0x1040, 48, descIndirect, 0}, desc{}, desc{}, desc{}, desc{0x1200, 4, descNext, 1}, desc{0x1210, 4, descNext | descWrite, 2}, desc{0x1220, 1, descWrite, 0}))
	f.Add(byte(7), image(1, desc{0x1000, 16, descNext, 0}))
	f.Add(byte(2), image(1, desc{0x1000, 16, descIndirect, 0}))
	f.Add(byte(0), image(9))
	f.Add(byte(15), image(1, desc{0x1000, 0xffffffff, 0, 0}))
	f.Fuzz(func(t *testing.T, how byte, ram []byte) {
		mem := make([]byte, 0x400)
		copy(mem, ram)
		m, err := NewMemory([]Region{{0x1000, split, 0x1000, mem[:split:split]}, {0x1000 + split, 0x400 - split, 0x9000, mem[split:]}})
		if err != nil {
			t.Fatal(err)
		}
		c := Config{Size: size, DescAddr: 0x1000, AvailAddr: 0x1080, UsedAddr: 0x10a0, EventIdx: how&1 != 0, Indirect: how&2 != 0, Memory: m}
		if how&4 != 0 {
			table := make([]byte, InflightSize(1, size))
			copy(table, mem[0x300:])
			if c.Inflight, err = NewInflight(table, size); err != nil {
				return
			}
		}
		if how&8 != 0 {
			c.Log, c.LogUsed, c.LogAddr = NewLog(mem[0x3f0:]), true, 0x10a0 // the log in guest memory, of all places
		}
		r, err := New(c)
		if err != nil {
			if !errors.Is(err, ErrRing) {
				t.Fatalf("New: %v", err)
			}
			return
		}
		rounds(t, r, mem)
	})
}

// rounds pops all there is, in a few rounds: what the guest has made available
// changes while it is answered, where the ring lies in what is written.
func rounds(t *testing.T, r *Ring, mem []byte) {
	for range 4 {
		var flying [2 * 8]Chain
		busy := map[uint16]bool{}
		n := 0
		for {
			c := &flying[n]
			ok, err := r.Pop(c)
			if err != nil && !errors.Is(err, ErrRing) {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if busy[c.Head] || c.Head >= r.Size() {
				t.Fatalf("descriptor %d of %d, again: %v", c.Head, r.Size(), busy[c.Head])
			}
			busy[c.Head] = true
			checkChain(t, c, mem)
			for _, b := range c.Writable {
				for i := range b {
					b[i] += byte(i) + 1
				}
			}
			if n++; n > int(r.Size()) {
				t.Fatalf("%d requests in flight on a ring of %d", n, r.Size())
			}
		}
		for i := n; i > 0; i-- {
			r.Done(&flying[i-1], uint32(i))
		}
		if _, err := r.Publish(); err != nil {
			t.Fatal(err)
		}
		if r.InFlight() != 0 {
			t.Fatalf("%d in flight", r.InFlight())
		}
		r.Enable()
		r.Disable()
	}
}

// checkChain checks that a chain is guest memory.
func checkChain(t *testing.T, c *Chain, mem []byte) {
	base := uintptr(unsafe.Pointer(&mem[0]))
	for i, parts := range [][][]byte{c.Readable, c.Writable} {
		sum := uint64(0)
		for _, b := range parts {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
			if len(b) == 0 || cap(b) != len(b) || at < base || at+uintptr(len(b)) > base+uintptr(len(mem)) {
				t.Fatalf("%d bytes (room for %d) that are not guest memory", len(b), cap(b))
			}
			sum += uint64(len(b))
		}
		if want := [2]uint64{c.ReadLen, c.WriteLen}[i]; sum != want {
			t.Fatalf("%d bytes, and the chain says %d", sum, want)
		}
	}
	if len(c.Readable)+len(c.Writable) > 2*(8+MaxSize) {
		t.Fatalf("%d slices", len(c.Readable)+len(c.Writable))
	}
}

// FuzzInflight: whatever a frontend's table holds, and whatever the used index,
// New fails or hands out each head at most once (I2).
func FuzzInflight(f *testing.F) {
	entry := func(inflight byte, next uint16, counter uint64) []byte {
		b := []byte{inflight, 0, 0, 0, 0, 0, byte(next), byte(next >> 8)}
		return binary.LittleEndian.AppendUint64(b, counter)
	}
	head := func(version, count, last, used byte) []byte {
		return []byte{0, 0, 0, 0, 0, 0, 0, 0, version, 0, count, 0, last, 0, used, 0}
	}
	f.Add(uint16(0), []byte{})
	f.Add(uint16(2), append(append(head(1, 8, 1, 0), entry(1, 0, 5)...), entry(1, 0, 4)...))
	f.Add(uint16(8), append(append(head(1, 8, 0, 0), entry(1, 1, 5)...), entry(1, 0, 4)...))
	f.Add(uint16(1), append(head(1, 8, 9, 0), entry(1, 1, 5)...))
	f.Fuzz(func(t *testing.T, used uint16, image []byte) {
		mem := make([]byte, 0x400)
		table := make([]byte, InflightSize(1, 8))
		copy(table, image)
		m, err := NewMemory([]Region{{0, 0x400, 0, mem}})
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint16(mem[0x100+2:], used)
		in, err := NewInflight(table, 8)
		if err != nil {
			return
		}
		r, err := New(Config{Size: 8, AvailAddr: 0x80, UsedAddr: 0x100, Memory: m, Inflight: in})
		if err != nil {
			if !errors.Is(err, ErrRing) {
				t.Fatal(err)
			}
			return
		}
		binary.LittleEndian.PutUint16(mem[0x80+2:], r.Base())
		if r.Resubmit() != in.Count() || r.Resubmit() > 8 {
			t.Fatalf("%d requests to do again, and %d in the table", r.Resubmit(), in.Count())
		}
		rounds(t, r, mem)
		if n := in.Count(); n != 0 {
			t.Fatalf("%d requests are left in the table", n)
		}
	})
}
