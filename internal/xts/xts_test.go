package xts

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	xcrypto "golang.org/x/crypto/xts"
)

// An impl is one implementation under test.
type impl struct {
	name             string
	expand           func(*Schedule, *[KeySize]byte)
	encrypt, decrypt func(s *Schedule, dst, src []byte, unitSize int, first uint64)
}

// impls are all that this machine can run.
var impls = func() (all []impl) {
	for _, k := range usable {
		all = append(all, impl{k.String(), k.expand, k.encrypt, k.decrypt})
	}
	return all
}()

// oracle encrypts with golang.org/x/crypto/xts, one data unit a call.
func oracle(tb testing.TB, key *[KeySize]byte, src []byte, unitSize int, first uint64) []byte {
	tb.Helper()
	c, err := xcrypto.NewCipher(aes.NewCipher, key[:])
	if err != nil {
		tb.Fatal(err)
	}
	out := make([]byte, len(src))
	for i := 0; i < len(src); i += unitSize {
		c.Encrypt(out[i:i+unitSize], src[i:i+unitSize], first)
		first++
	}
	return out
}

func newRand(tb testing.TB) *rand.ChaCha8 {
	tb.Helper()
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], 1619)
	return rand.NewChaCha8(seed)
}

func randomBytes(r *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	r.Read(b)
	return b
}

func randomKey(r *rand.ChaCha8) *[KeySize]byte { return (*[KeySize]byte)(randomBytes(r, KeySize)) }

// newSchedule expands key by the public way.
func newSchedule(tb testing.TB, key *[KeySize]byte) *Schedule {
	tb.Helper()
	s := new(Schedule)
	if err := s.Expand(key); err != nil {
		tb.Fatal(err)
	}
	return s
}

// lengths are the unit sizes that tests go through: every number of blocks that
// the eight blocks in flight divide differently, and what is used.
func lengths() (n []int) {
	for l := 16; l <= 1024; l += 16 {
		n = append(n, l)
	}
	return append(n, 4096-16, 4096, 4096+16, 2*4096, 3*4096, 32*4096)
}

func TestEveryLength(t *testing.T) {
	r := newRand(t)
	for _, im := range impls {
		t.Run(im.name, func(t *testing.T) {
			for _, unitSize := range lengths() {
				units := []int{1, 2, 7, 8, 9, 17}
				if unitSize > 1024 {
					units = []int{1, 3}
				}
				for _, n := range units {
					key := randomKey(r)
					first := r.Uint64() >> 1
					src := randomBytes(r, n*unitSize)
					checkBothWays(t, im, key, src, unitSize, first)
				}
			}
		})
	}
}

// checkBothWays checks one message against the oracle: out of place and in
// place, encryption and decryption.
func checkBothWays(t *testing.T, im impl, key *[KeySize]byte, src []byte, unitSize int, first uint64) {
	t.Helper()
	s := new(Schedule)
	im.expand(s, key)
	want := oracle(t, key, src, unitSize, first)
	plain := bytes.Clone(src)

	got := make([]byte, len(src))
	im.encrypt(s, got, src, unitSize, first)
	if !bytes.Equal(got, want) {
		t.Fatalf("encrypt, %d bytes in units of %d from %d: differs from x/crypto at byte %d",
			len(src), unitSize, first, firstDifference(got, want))
	}
	if !bytes.Equal(src, plain) {
		t.Fatalf("encrypt, %d bytes in units of %d: the source changed", len(src), unitSize)
	}
	back := make([]byte, len(src))
	im.decrypt(s, back, got, unitSize, first)
	if !bytes.Equal(back, plain) {
		t.Fatalf("decrypt, %d bytes in units of %d from %d: differs at byte %d",
			len(src), unitSize, first, firstDifference(back, plain))
	}

	im.encrypt(s, back, back, unitSize, first)
	if !bytes.Equal(back, want) {
		t.Fatalf("encrypt in place, %d bytes in units of %d: differs at byte %d",
			len(src), unitSize, firstDifference(back, want))
	}
	im.decrypt(s, back, back, unitSize, first)
	if !bytes.Equal(back, plain) {
		t.Fatalf("decrypt in place, %d bytes in units of %d: differs at byte %d",
			len(src), unitSize, firstDifference(back, plain))
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// TestLongCalls goes over what one call of the assembly takes (64 KiB), with many
// small units, with units that do not divide it, and with one that is longer.
func TestLongCalls(t *testing.T) {
	r := newRand(t)
	for _, im := range impls {
		for _, tt := range []struct{ unitSize, units int }{
			{4096, 40}, {16, 4096 + 9}, {4096 + 16, 18}, {48 << 10, 3}, {64 << 10, 2}, {128<<10 + 16, 2},
		} {
			checkBothWays(t, im, randomKey(r), randomBytes(r, tt.unitSize*tt.units), tt.unitSize, 1<<32-3)
		}
	}
}

func TestUnitNumbers(t *testing.T) {
	r := newRand(t)
	for _, im := range impls {
		for _, first := range []uint64{0, 1, 0xff, 1<<32 - 2, 1 << 50, math.MaxUint64 - 15} {
			checkBothWays(t, im, randomKey(r), randomBytes(r, 16*64), 64, first)
		}
	}
}

// TestAlignment moves source, destination, schedule and key through all
// alignments within a cache line.
func TestAlignment(t *testing.T) {
	const unitSize = 11 * 16 // one group of eight, and a tail
	r := newRand(t)
	key := randomKey(r)
	msg := randomBytes(r, 2*unitSize)
	want := oracle(t, key, msg, unitSize, 5)
	in, out := make([]byte, len(msg)+64), make([]byte, len(msg)+64)
	slot := make([]byte, KeySize+ScheduleSize+64)
	for _, im := range impls {
		for i := range 64 {
			src := in[i:][:len(msg)]
			k := (*[KeySize]byte)(slot[i:])
			s := (*Schedule)(slot[i+KeySize:])
			copy(src, msg)
			copy(k[:], key[:])
			im.expand(s, k)
			for j := range 64 {
				dst := out[j:][:len(msg)]
				im.encrypt(s, dst, src, unitSize, 5)
				if !bytes.Equal(dst, want) {
					t.Fatalf("%s: encrypt, source at %d, destination at %d: wrong", im.name, i, j)
				}
				im.decrypt(s, dst, dst, unitSize, 5)
				if !bytes.Equal(dst, msg) {
					t.Fatalf("%s: decrypt in place at %d: wrong", im.name, j)
				}
			}
		}
	}
}

// TestSchedule compares the schedules of all implementations, and those with the
// key expansion example of FIPS 197, A.3.
func TestSchedule(t *testing.T) {
	r := newRand(t)
	for range 200 {
		key := randomKey(r)
		var want Schedule
		expandGeneric(&want, key)
		for _, im := range impls {
			var got Schedule
			im.expand(&got, key)
			if got != want {
				t.Fatalf("%s: schedule differs from generic at byte %d", im.name, firstDifference(got[:], want[:]))
			}
		}
	}

	key := unhex(t, "603deb1015ca71be2b73aef0857d7781"+"1f352c073b6108d72d9810a30914dff4")
	s := newSchedule(t, (*[KeySize]byte)(append(key, make([]byte, 32)...)))
	for _, tt := range []struct {
		off  int
		want string
	}{
		{offEncrypt + 2*16, "9ba354118e6925afa51a8b5f2067fcde"},
		{offEncrypt + 14*16, "fe4890d1e6188d0b046df344706c631e"},
		{offDecrypt, "fe4890d1e6188d0b046df344706c631e"},
		{offDecrypt + 14*16, "603deb1015ca71be2b73aef0857d7781"},
	} {
		if got := s[tt.off:][:16]; !bytes.Equal(got, unhex(t, tt.want)) {
			t.Errorf("schedule at %d is %x, want %s", tt.off, got, tt.want)
		}
	}
}

// TestSbox compares the circuit with the S-box worked out from its definition.
func TestSbox(t *testing.T) {
	for x := range 256 {
		b := byte(inverse(x))
		want := b ^ rotl(b, 1) ^ rotl(b, 2) ^ rotl(b, 3) ^ rotl(b, 4) ^ 0x63
		for lane := range 64 {
			var q lanes
			q[lane/8] = uint64(x) << (8 * (lane % 8))
			subBytes(&q)
			if got := byte(q[lane/8] >> (8 * (lane % 8))); got != want {
				t.Fatalf("S-box of %#x in lane %d is %#x, want %#x", x, lane, got, want)
			}
			invSubBytes(&q)
			if got := byte(q[lane/8] >> (8 * (lane % 8))); got != byte(x) {
				t.Fatalf("inverse S-box of %#x in lane %d is %#x, want %#x", want, lane, got, x)
			}
		}
	}
}

func rotl(b byte, n int) byte { return b<<n | b>>(8-n) }

// inverse finds the inverse of x in GF(2^8) by trial; that of 0 is 0.
func inverse(x int) int {
	for y := range 256 {
		p := 0
		for i := range 8 {
			if y>>i&1 == 1 {
				p ^= x << i
			}
		}
		for i := 14; i >= 8; i-- {
			if p>>i&1 == 1 {
				p ^= 0x11b << (i - 8)
			}
		}
		if p == 1 {
			return y
		}
	}
	return 0
}

func TestNoAllocations(t *testing.T) {
	r := newRand(t)
	key := randomKey(r)
	s := newSchedule(t, key)
	buf, out := randomBytes(r, 64<<10), make([]byte, 64<<10)
	for name, f := range map[string]func(){
		"Encrypt": func() { s.Encrypt(out, buf, 4096, 9) },
		"Decrypt": func() { s.Decrypt(out, buf, 4096, 9) },
		"Expand": func() {
			if s.Expand(key) != nil {
				panic("weak key")
			}
		},
		"expandGeneric":  func() { expandGeneric(s, key) },
		"encryptGeneric": func() { encryptGeneric(s, out[:4096], buf[:4096], 512, 9) },
		"decryptGeneric": func() { decryptGeneric(s, out[:4096], buf[:4096], 512, 9) },
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s allocates %v times a call", name, n)
		}
	}
}

// TestImplementation: what the processor has and the build allows is used, in its
// order. (Another list than the one the choice reads is the witness: on amd64 the
// kernel's flags, which leave out what it does not enable.)
func TestImplementation(t *testing.T) {
	want := []string{"generic"}
	switch {
	case assembly && runtime.GOARCH == "amd64":
		info := readProc(t, "cpuinfo")
		for _, tt := range []struct{ name, flags string }{
			{"aesni", "aes"},
			{"vaes", "aes avx2 vaes vpclmulqdq"},
			{"avx512", "aes avx512f avx512bw avx512dq avx512vl bmi2 vaes vpclmulqdq"},
		} {
			if hasFlags(info, tt.flags) {
				want = slices.Insert(want, 0, tt.name)
			}
		}
	case assembly && runtime.GOARCH == "arm64":
		if hardware(readProc(t, "self/auxv"))&(1<<3) != 0 { // HWCAP_AES
			want = slices.Insert(want, 0, "aesce")
		}
	}
	got := Implementations()
	if got[0] != Implementation() {
		t.Errorf("Implementation() = %q, but the first of Implementations() is %q", Implementation(), got[0])
	}
	// On some Intel processors the 512 bits stand behind the 256 (slowZMM).
	if len(got) == 4 && got[0] == "vaes" {
		got[0], got[1] = got[1], got[0]
	}
	if !slices.Equal(got, want) {
		t.Errorf("Implementations() = %q, want %q", got, want)
	}
}

func readProc(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("/proc/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hardware returns AT_HWCAP of an auxiliary vector (getauxval(3)). The file cpuinfo
// would not do: an emulator of programs shows that of the machine it runs on.
func hardware(auxv []byte) uint64 {
	const hwcap = 16
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == hwcap {
			return binary.NativeEndian.Uint64(auxv[8:])
		}
	}
	return 0
}

func hasFlags(info []byte, flags string) bool {
	for flag := range strings.FieldsSeq(flags) {
		if !bytes.Contains(info, []byte(" "+flag+" ")) {
			return false
		}
	}
	return true
}

// TestSlot: a key and its schedule fit a key slot, and the schedule keeps the
// slot's alignment.
func TestSlot(t *testing.T) {
	const slotSize = 1024
	if KeySize+ScheduleSize > slotSize {
		t.Errorf("key and schedule take %d bytes of a slot of %d", KeySize+ScheduleSize, slotSize)
	}
	if unsafe.Sizeof(Schedule{}) != ScheduleSize || KeySize%64 != 0 {
		t.Error("the schedule does not begin on a cache line of its slot")
	}
}
