package volatile

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// mapWith makes a map and opens it.
func mapWith(t rapid.TB, blocks uint64, extents []Extent) *Map {
	t.Helper()
	f, err := CreateMap(blocks, len(extents), testLease)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenMap(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.SetExtents(extents); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *Map) write(block uint64) {
	m.Summary()[block/32768/64].Or(1 << (block / 32768 % 64))
	m.Words()[block/64].Or(1 << (block % 64))
}

// TestL4Grow: every block is in the larger map what it was, and those that are new
// are unwritten.
func TestL4Grow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.Uint64Range(1, 5*32768).Draw(t, "blocks")
		more := blocks + rapid.Uint64Range(0, 3*32768).Draw(t, "more")
		old := mapWith(t, blocks, testExtents(2))
		defer old.Close()
		written := map[uint64]bool{}
		for _, b := range rapid.SliceOf(rapid.Uint64Range(0, blocks-1)).Draw(t, "written") {
			old.write(b)
			written[b] = true
		}
		extents := testExtents(1 + rapid.IntRange(1, 200).Draw(t, "extents"))
		f, mapped, err := old.Grow(t.Context(), more, extents)
		if err != nil {
			t.Fatal(err)
		}
		defer mapped.Close()
		next, err := OpenMap(f)
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if got, err := next.Extents(); err != nil || !slices.Equal(got, extents) || next.Blocks() != more || next.Lease() != testLease {
			t.Fatalf("%d blocks of lease %v, %d extents, %v", next.Blocks(), next.Lease(), len(got), err)
		}
		for i := range next.Words() {
			want := uint64(0)
			for bit := range uint64(64) {
				if written[uint64(i)*64+bit] {
					want |= 1 << bit
				}
			}
			if got := next.Words()[i].Load(); got != want {
				t.Fatalf("word %d is %#x, want %#x", i, got, want)
			}
			page := i / 512
			if want != 0 && next.Summary()[page/64].Load()&(1<<(page%64)) == 0 {
				t.Fatalf("A1: page %d has bits, and no summary bit", page)
			}
		}
	})
}

// TestL4GrowHidesStrayBits: a bit behind the last block means nothing, and does not
// make a block written that comes to be there.
func TestL4GrowHidesStrayBits(t *testing.T) {
	old := mapWith(t, 70, testExtents(1))
	defer old.Close()
	old.write(69)
	old.write(70)
	old.write(127)
	old.Summary()[0].Or(1 << 63)
	f, next, err := old.Grow(t.Context(), 200, testExtents(1))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer next.Close()
	if got := next.Words()[1].Load(); got != 1<<5 || next.Summary()[0].Load() != 1 {
		t.Errorf("word 1 is %#x, the summary %#x", got, next.Summary()[0].Load())
	}
}

func TestGrowIsSparse(t *testing.T) {
	old := mapWith(t, 1<<28, testExtents(1))
	defer old.Close()
	old.write(1<<28 - 1)
	f, next, err := old.Grow(t.Context(), 1<<29, testExtents(2))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer next.Close()
	if got := allocated(t, f); got > 16<<10 {
		t.Errorf("a map with one written block takes %d bytes", got)
	}
}

func TestGrowRefused(t *testing.T) {
	old := mapWith(t, 100, testExtents(1))
	defer old.Close()
	old.write(3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, grow := range map[string]func() (*os.File, *Map, error){
		"ended":      func() (*os.File, *Map, error) { return old.Grow(ctx, 101, testExtents(1)) },
		"smaller":    func() (*os.File, *Map, error) { return old.Grow(t.Context(), 99, testExtents(1)) },
		"no extents": func() (*os.File, *Map, error) { return old.Grow(t.Context(), 101, nil) },
		"no extent":  func() (*os.File, *Map, error) { return old.Grow(t.Context(), 101, make([]Extent, 1)) },
		"too large":  func() (*os.File, *Map, error) { return old.Grow(t.Context(), MaxBlocks+1, testExtents(1)) },
	} {
		f, next, err := grow()
		if f != nil || next != nil || err == nil || what == "ended" != errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, %v", what, f, err)
		}
	}
}

func TestLinkRemaps(t *testing.T) {
	l, c := peer(t)
	defer c.Close()
	defer l.Close()
	for _, errno := range []syscall.Errno{0, syscall.ENOENT} {
		p := newPipe(t)
		done := make(chan error)
		go func() { done <- l.Remap(5, p.w) }()
		m, f := recvFile(t, c)
		if m.Kind != KindRemap || m.Slot != 5 {
			t.Errorf("received %+v", m)
		}
		p.says(t, f, "map")
		var b [MessageSize]byte
		reply := Message{Kind: KindRemap, Reply: true, Slot: 5, ID: m.ID, Errno: errno}
		reply.Encode(&b)
		if err := c.Send(b[:], nil); err != nil {
			t.Fatal(err)
		}
		if err := <-done; errno == 0 && err != nil || errno != 0 && !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := l.Remap(5, nil); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("no map: %v", err)
	}
	if err := l.Remap(Slots, os.Stdin); !errors.Is(err, ErrSlot) {
		t.Errorf("no slot: %v", err)
	}
}

// BenchmarkGrow is the pause that a volume of 1 TiB has which was written all over.
func BenchmarkGrow(b *testing.B) {
	old, err := CreateMap(1<<28, 1, testLease)
	if err != nil {
		b.Fatal(err)
	}
	m, err := OpenMap(old)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for i := range m.Words() {
		m.Words()[i].Store(1<<64 - 1)
	}
	for i := range m.Summary() {
		m.Summary()[i].Store(1<<64 - 1)
	}
	for b.Loop() {
		f, next, err := m.Grow(b.Context(), 1<<29, testExtents(2))
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(next.Close(), f.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
