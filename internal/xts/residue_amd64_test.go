package xts

import (
	"math/rand/v2"
	"runtime"
	"runtime/debug"
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

// residueUnits have groups of eight, tails, both, and neither.
var residueUnits = []int{16, 7 * 16, 4096, 4096 + 48}

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

// TestRegistersCleared: after each call of the assembly X0 to X15 are zero, and so
// they are if they were not before.
func TestRegistersCleared(t *testing.T) {
	quiet(t)
	var got [16][16]byte

	regs.Fill(&pattern) // the control: what is left behind is seen
	regs.Read(&got)
	for i := range 15 {
		if got[i] != pattern {
			t.Fatalf("control: X%d is %x, want the pattern", i, got[i])
		}
	}

	r := newRand(t)
	for _, unit := range residueUnits {
		c := newResidueCase(unit, 9)
		c.reset(r)
		for name, f := range c.assemblyCalls() {
			regs.Fill(&pattern)
			f()
			regs.Read(&got)
			for i, x := range got {
				if x != ([16]byte{}) {
					t.Errorf("%s, unit of %d: X%d is %x, want 0", name, unit, i, x)
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

// leftOnStack counts the bytes below the caller that depend on key or data after f.
func leftOnStack(c *residueCase, r *rand.ChaCha8, f func()) (differ int) {
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
