package mem

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"vacate/internal/plant"
	"vacate/internal/sys"
)

func TestMapRegion(t *testing.T) {
	for _, size := range []int{1, 64, 4096, 4097, 1 << 20} {
		r, err := Map(size, MustLock)
		if err != nil {
			t.Fatalf("Map(%d): %v", size, err)
		}
		b := r.Bytes()
		if len(b) != size || !IsZero(b) {
			t.Errorf("Map(%d) gave %d bytes, zero %v", size, len(b), IsZero(b))
		}
		if addr := uintptr(unsafe.Pointer(&b[0])); addr%uintptr(sys.PageSize) != 0 { // M1
			t.Errorf("Map(%d) starts at %#x, inside a page", size, addr)
		}
		if !r.Locked() || r.LockError() != nil {
			t.Errorf("Map(%d, MustLock) is not locked: %v", size, r.LockError())
		}
		b[0], b[size-1] = 1, 2
		vma := smaps(t, uintptr(unsafe.Pointer(&b[0])))
		for _, flag := range []string{"dd", "wf", "lo"} { // dontdump, wipeonfork, locked (proc(5))
			if !regexp.MustCompile(`VmFlags:.*\b` + flag + `\b`).MatchString(vma) {
				t.Errorf("Map(%d): memory without flag %q:\n%s", size, flag, vma)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("closing a region of %d bytes: %v", size, err)
		}
		if err := r.Close(); err != nil || r.Bytes() != nil {
			t.Errorf("second Close: %v, %d bytes left", err, len(r.Bytes()))
		}
	}
	for _, size := range []int{0, -1, 1<<40 + 1} {
		if _, err := Map(size, TryLock); err == nil {
			t.Errorf("Map(%d) succeeded", size)
		}
	}
}

// smaps returns the lines of /proc/self/smaps about the mapping that holds addr.
func smaps(t *testing.T, addr uintptr) string {
	t.Helper()
	all, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	head := regexp.MustCompile(`(?m)^[0-9a-f]+-[0-9a-f]+ `)
	at := head.FindAllIndex(all, -1)
	for i, m := range at {
		end := len(all)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		lo, hi := hexRange(string(all[m[0]:m[1]]))
		if lo <= addr && addr < hi {
			return string(all[m[0]:end])
		}
	}
	t.Fatalf("no mapping at %#x", addr)
	return ""
}

func hexRange(s string) (lo, hi uintptr) {
	cur := &lo
	for _, c := range strings.TrimSpace(s) {
		switch {
		case c == '-':
			cur = &hi
		case c >= 'a':
			*cur = *cur<<4 | uintptr(c-'a'+10)
		default:
			*cur = *cur<<4 | uintptr(c-'0')
		}
	}
	return lo, hi
}

func TestGuardPages(t *testing.T) { // M2
	r, err := Map(sys.PageSize, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	start := uintptr(unsafe.Pointer(&r.Bytes()[0]))
	for _, addr := range []uintptr{start - 1, start + uintptr(sys.PageSize)} {
		if vma := smaps(t, addr); !strings.Contains(vma, " ---p ") {
			t.Errorf("memory at %#x next to a region may be touched:\n%s", addr, vma)
		}
	}
}

func TestMapSharedSeesAndKeeps(t *testing.T) {
	f, err := sys.Memfd("test", 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, err := MapShared(f, 8192)
	if err != nil {
		t.Fatal(err)
	}
	b, err := MapShared(f, 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if a.Locked() || a.LockError() == nil {
		t.Error("a shared mapping says it is locked before Lock")
	}
	if err := a.Lock(MustLock); err != nil || !a.Locked() {
		t.Errorf("Lock: %v, locked %v", err, a.Locked())
	}
	a.Bytes()[5000] = 7
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Bytes()[5000] != 7 {
		t.Error("closing one mapping changed what the other sees")
	}
}

func TestWipeAndIsZero(t *testing.T) {
	buf := make([]byte, 3*4096+17)
	for _, n := range []int{0, 1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 255, 4096, 3 * 4096} {
		for _, off := range []int{0, 1, 8, 13} {
			b := buf[off : off+n]
			for i := range n {
				if n > 300 && i%61 != 0 && i != n-1 {
					continue
				}
				b[i] = 0x80
				if IsZero(b) {
					t.Fatalf("IsZero missed byte %d of %d at offset %d", i, n, off)
				}
				b[i] = 0
			}
			for i := range buf {
				buf[i] = 0xff
			}
			Wipe(b)
			if !IsZero(b) {
				t.Errorf("Wipe left something of %d bytes at offset %d", n, off)
			}
			if off > 0 && buf[off-1] != 0xff || buf[off+n] != 0xff {
				t.Errorf("Wipe of %d bytes at offset %d touched its neighbours", n, off)
			}
			clear(buf)
		}
	}
}

func TestWords(t *testing.T) {
	r, err := Map(64, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := Words(r.Bytes())
	w[7].Store(^uint64(0))
	if len(w) != 8 || r.Bytes()[55] != 0 || r.Bytes()[56] != 0xff || Words(nil) != nil {
		t.Errorf("Words are not the bytes: %d words, % x", len(w), r.Bytes()[48:])
	}
	for _, b := range [][]byte{r.Bytes()[1:9], r.Bytes()[:7]} {
		if !panics(func() { Words(b) }) {
			t.Errorf("Words of %d bytes at a wrong place did not panic", len(b))
		}
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return
}

func TestPool(t *testing.T) {
	p, err := NewPool(5000, 3, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for b := p.Get(); b != nil; b = p.Get() {
		if len(b) != 5000 || cap(b) != 5000 || uintptr(unsafe.Pointer(&b[0]))%uintptr(sys.PageSize) != 0 {
			t.Fatalf("buffer of %d bytes, capacity %d, at %p", len(b), cap(b), &b[0])
		}
		for i := range b {
			b[i] = byte(len(out) + 1)
		}
		out = append(out, b)
	}
	if len(out) != 3 || p.Free() != 0 {
		t.Fatalf("pool of 3 gave %d buffers", len(out))
	}
	if err := p.Close(); err == nil {
		t.Error("Close succeeded with buffers out")
	}
	for i, b := range out {
		for _, c := range b {
			if c != byte(i+1) {
				t.Fatalf("buffers overlap")
			}
		}
	}
	foreign := make([]byte, 5000)
	for name, b := range map[string][]byte{"foreign": foreign, "inside": out[0][1:]} {
		if !panics(func() { p.Put(b) }) {
			t.Errorf("putting a %s buffer did not panic", name)
		}
	}
	for _, b := range out {
		p.Put(b)
	}
	if !panics(func() { p.Put(out[1]) }) {
		t.Error("putting a buffer twice did not panic")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestL3PoolClears is law L3 at the pool: a tenant's bytes are gone when its
// buffer is put back. The planted bug "buffer-not-cleared" makes it fail.
func TestL3PoolClears(t *testing.T) {
	p, err := NewPool(4096, 1, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b := p.Get()
	copy(b, "tenant's plaintext")
	p.Put(b)
	if strings.Contains(string(b), "plaintext") {
		t.Error("a buffer that was put back holds plaintext (P2)")
	}
	if again := p.Get(); !IsZero(again) {
		t.Error("Get returned a buffer that is not zero (P1)")
	} else {
		copy(again, "0123456789")
		p.Put(again[:10])
		if got := p.Get(); !IsZero(got) {
			t.Error("Put of a shorter buffer left something")
		} else {
			p.Put(got)
		}
	}
}

func TestPoolPoison(t *testing.T) {
	if !checked {
		return // what the tag "invariants" adds; make test builds both
	}
	p, err := NewPool(4096, 1, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	b := p.Get()
	p.Put(b)
	b[100] = 1
	if !plant.On && !panics(func() { p.Get() }) {
		t.Error("a write after Put went unseen")
	}
}

func TestPoolAllocatesNothing(t *testing.T) {
	p, err := NewPool(4096, 4, TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n := testing.AllocsPerRun(100, func() { b := p.Get(); b[0] = 1; p.Put(b) }); n != 0 {
		t.Errorf("%v allocations a Get and Put", n)
	}
}

// TestLockRefused runs itself as an ordinary user that may lock 64 KiB.
func TestLockRefused(t *testing.T) {
	if os.Getenv("MEM_TEST_CHILD") != "" {
		lockRefusedChild(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockRefused$", "-test.v")
	cmd.Env = append(os.Environ(), "MEM_TEST_CHILD=1")
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Args[0] = "/proc/self/exe" // the build folder may be closed to that user
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		cmd.ExtraFiles = []*os.File{self}
		cmd.Path = "/proc/self/fd/3"
		cmd.Dir = "/"
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}

func lockRefusedChild(t *testing.T) {
	const rlimitMemlock = 8
	lim := syscall.Rlimit{Cur: 64 << 10, Max: 4 << 20}
	if err := syscall.Setrlimit(rlimitMemlock, &lim); err != nil {
		t.Fatal(err)
	}
	_, err := Map(1<<20, MustLock)
	var le *LockError
	if !errors.As(err, &le) || le.Size != 1<<20 || le.Limit != 64<<10 || le.Err == nil {
		t.Fatalf("Map over the limit: %v", err)
	}
	if !strings.Contains(err.Error(), "RLIMIT_MEMLOCK allows 64 KiB, 0 KiB are in use; allow at least 1024 KiB") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	r, err := Map(1<<20, TryLock)
	if err != nil {
		t.Fatalf("TryLock: %v", err)
	}
	if r.Locked() || r.LockError() == nil {
		t.Errorf("TryLock over the limit: locked %v, why not: %v", r.Locked(), r.LockError())
	}
	r.Bytes()[0] = 1
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	// The hint, tried: the limit that the error asks for is enough.
	lim.Cur = le.need()
	if err := syscall.Setrlimit(rlimitMemlock, &lim); err != nil {
		t.Fatal(err)
	}
	r, err = Map(1<<20, MustLock)
	if err != nil {
		t.Fatalf("with the limit that the error asked for: %v", err)
	}
	r.Close()
}

func BenchmarkIsZero4K(b *testing.B) {
	buf := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		if !IsZero(buf) {
			b.Fatal("not zero")
		}
	}
}

func BenchmarkPoolGetPut4K(b *testing.B) {
	p, err := NewPool(4096, 1, TryLock)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	b.SetBytes(4096)
	for b.Loop() {
		p.Put(p.Get())
	}
}
