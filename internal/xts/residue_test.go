//go:build amd64 || arm64

package xts

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"

	"vacate/internal/xts/internal/regs"
)

// A residueCase is one set of memory that calls work on. Its content can be
// changed without changing an address, so whatever else differs after a call was
// left behind by it.
type residueCase struct {
	key   *[KeySize]byte
	s     *Schedule
	plain []byte
	buf   []byte
	unit  int
	first uint64
}

func newResidueCase(unit, units int) *residueCase {
	return &residueCase{
		key: new([KeySize]byte), s: new(Schedule), unit: unit, first: 1 << 40,
		plain: make([]byte, unit*units), buf: make([]byte, unit*units),
	}
}

// reset gives the case another key and another plaintext; buf has the ciphertext.
func (c *residueCase) reset(r *rand.ChaCha8) {
	r.Read(c.key[:])
	r.Read(c.plain)
	expandGeneric(c.s, c.key)
	encryptGeneric(c.s, c.buf, c.plain, c.unit, c.first)
}

func (c *residueCase) calls() map[string]func() {
	m := map[string]func(){
		"Encrypt":         func() { c.s.Encrypt(c.buf, c.plain, c.unit, c.first) },
		"Decrypt":         func() { c.s.Decrypt(c.buf, c.buf, c.unit, c.first) },
		"generic expand":  func() { expandGeneric(c.s, c.key) },
		"generic encrypt": func() { encryptGeneric(c.s, c.buf, c.plain, c.unit, c.first) },
		"generic decrypt": func() { decryptGeneric(c.s, c.buf, c.buf, c.unit, c.first) },
	}
	for name, f := range c.assemblyCalls() {
		m[name] = f
	}
	return m
}

var pattern = [16]byte{0x5a, 0xc3, 0x96, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x77}

// residueUnits have groups of eight and of sixteen, tails, both, and neither.
var residueUnits = []int{16, 7 * 16, 15 * 16, 4096, 4096 + 48}

// quiet keeps the collector and other goroutines away from this thread's registers
// and this goroutine's stack while a test looks at them.
func quiet(t *testing.T) {
	runtime.LockOSThread()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		runtime.UnlockOSThread()
	})
}

// registers are the vector registers of this thread as a test sees them. What fill
// fills and read reads is the processor's affair, as are the masks.
type registers struct {
	vectors [32][64]byte
	masks   [8]uint64
}

// TestRegistersCleared: after each call of the assembly the vector registers that
// it may use are zero, in all their bits, and so are its masks.
func TestRegistersCleared(t *testing.T) {
	quiet(t)
	var got registers
	got.fill() // the control: what is left behind is seen
	got.read()
	n, width := vectorRegisters()
	for i, x := range got.vectors[:n] {
		for at := 0; at < width && i != keptZero; at += len(pattern) {
			if [16]byte(x[at:]) != pattern {
				t.Fatalf("control: register %d is %x, want the pattern", i, x)
			}
		}
	}

	r := newRand(t)
	for _, unit := range residueUnits {
		c := newResidueCase(unit, 9)
		c.reset(r)
		for name, f := range c.assemblyCalls() {
			n, width, masks := cleared(name)
			got = registers{}
			got.fill()
			f()
			got.read()
			for i, x := range got.vectors[:n] {
				if !bytes.Equal(x[:width], make([]byte, width)) {
					t.Errorf("%s, unit of %d: register %d is %x, want 0", name, unit, i, x)
				}
			}
			for i, k := range got.masks {
				if k != 0 && masks>>i&1 == 1 {
					t.Errorf("%s, unit of %d: mask %d is %x, want 0", name, unit, i, k)
				}
			}
		}
	}
}

// TestStackCleared: what a call leaves on the stack below its caller is the same
// for every key and every plaintext.
func TestStackCleared(t *testing.T) {
	quiet(t)
	r := newRand(t)
	for _, unit := range residueUnits {
		c := newResidueCase(unit, 9)
		calls := c.calls()
		calls["control"] = func() { regs.Spill((*[16]byte)(c.plain)) }
		for name, f := range calls {
			left := leftOnStack(c, r, f)
			if name == "control" && left < regs.Depth/2 {
				t.Errorf("control: of the plaintext put on the stack, %d bytes were found", left)
			}
			if name != "control" && left != 0 {
				t.Errorf("%s, unit of %d: left %d bytes on the stack that depend on key or data", name, unit, left)
			}
		}
	}
}

// leftOnStack counts the bytes below the caller that depend on key or data after f:
// what f leaves, it leaves each time. A difference that does not come again is of a
// call in which the scheduler took its turn, before which a function spills its
// arguments: addresses.
func leftOnStack(c *residueCase, r *rand.ChaCha8, f func()) int {
	least := differOnStack(c, r, f)
	for range 2 {
		if least > 0 {
			least = min(least, differOnStack(c, r, f))
		}
	}
	return least
}

func differOnStack(c *residueCase, r *rand.ChaCha8, f func()) (differ int) {
	a, b := new([regs.Depth]byte), new([regs.Depth]byte)
	for _, stack := range []*[regs.Depth]byte{a, b} {
		c.reset(r)
		regs.GrowStack()
		regs.Spill(&pattern)
		f()
		regs.Stack(stack)
	}
	for i := range a {
		if a[i] != b[i] {
			differ++
		}
	}
	return differ
}

// TestScrub: after a fault in the assembly, and Scrub, the stack below the caller
// is the same for every key and every plaintext. (TestRegistersCleared has the
// registers.)
func TestScrub(t *testing.T) {
	quiet(t)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func(k kernel) { active = k }(active)
	page := syscall.Getpagesize()
	m := guarded(t, 2*page)
	if err := syscall.Mprotect(m[page:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	r := newRand(t)
	for _, active = range usable {
		c := newResidueCase(4096, 2)
		fault := func() {
			if _, ok := catch(func() { c.s.Encrypt(m, c.plain, c.unit, c.first) }).(error); !ok {
				t.Fatalf("%v: no fault was reported", active)
			}
		}
		if left := leftOnStack(c, r, fault); left < 16 {
			t.Errorf("control: %v left %d bytes after a fault, want at least a tweak", active, left)
		}
		if left := leftOnStack(c, r, func() { fault(); Scrub() }); left != 0 {
			t.Errorf("%v: %d bytes that depend on key or data survive Scrub", active, left)
		}
	}
}
