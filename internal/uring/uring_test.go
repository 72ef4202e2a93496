package uring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/sys"
)

// file makes a file of 1 MiB, whose block n is filled with n.
func file(t testing.TB) (f *os.File, fd int) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	for i := range 256 {
		if _, err := f.Write(bytes.Repeat([]byte{byte(i)}, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	return f, int(f.Fd())
}

// ring makes a ring and locks the test to its thread.
func ring(t testing.TB, entries int) *Ring {
	t.Helper()
	r, err := New(entries)
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	t.Cleanup(func() {
		runtime.UnlockOSThread()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
	return r
}

func enter(t testing.TB, r *Ring, wait bool) {
	t.Helper()
	if errno := r.Enter(wait); errno != 0 {
		t.Fatalf("Enter(%v): %v", wait, errno)
	}
}

func TestLayout(t *testing.T) {
	for name, size := range map[string][2]uintptr{
		"submission": {unsafe.Sizeof(sys.UringSQE{}), 64},
		"completion": {unsafe.Sizeof(sys.UringCQE{}), 16},
		"parameters": {unsafe.Sizeof(sys.UringParams{}), 120},
	} {
		if size[0] != size[1] {
			t.Errorf("a %s has %d bytes, want %d", name, size[0], size[1])
		}
	}
}

// with runs a test with each set of flags that a kernel may leave us.
func with(t *testing.T, test func(t *testing.T)) {
	all := flags
	defer func() { flags = all }()
	for _, f := range all {
		flags = []sys.UringFlags{f}
		t.Run(fmt.Sprintf("flags %#x", uint32(f)), test)
	}
}

// TestBatches: often enough that both rings wrap.
func TestBatches(t *testing.T) {
	with(t, func(t *testing.T) {
		_, fd := file(t)
		const n = 8
		r := ring(t, n)
		if r.Room() != n {
			t.Fatalf("Room = %d", r.Room())
		}
		bufs := make([][]byte, n)
		for i := range bufs {
			bufs[i] = make([]byte, 4096)
		}
		for round := range 100 {
			for i := range bufs {
				if !r.Read(uint64(i), fd, bufs[i], int64((round+i)%256)*4096) {
					t.Fatalf("round %d: full after %d", round, i)
				}
			}
			if r.Sync(99, fd) || r.Read(99, fd, bufs[0], 0) {
				t.Fatal("a full ring takes more")
			}
			seen := uint64(0)
			for got := 0; got < n; {
				enter(t, r, true)
				for c, ok := r.Next(); ok; c, ok = r.Next() {
					if c.Errno != 0 || c.N != 4096 || c.ID >= n || seen&(1<<c.ID) != 0 {
						t.Fatalf("round %d: %+v", round, c)
					}
					seen |= 1 << c.ID
					got++
				}
			}
			for i, b := range bufs {
				if want := byte(round + i); b[0] != want || b[4095] != want {
					t.Fatalf("round %d: block %d holds %d", round, i, b[0])
				}
			}
		}
		runtime.KeepAlive(bufs)
	})
}

func TestWriteSyncErrors(t *testing.T) {
	f, fd := file(t)
	r := ring(t, 4)
	one := func() Completion {
		t.Helper()
		enter(t, r, true)
		c, ok := r.Next()
		if !ok {
			t.Fatal("Enter(true) returned without a completion")
		}
		if _, more := r.Next(); more {
			t.Fatal("two completions of one submission")
		}
		return c
	}
	data := bytes.Repeat([]byte("x"), 4096)
	for _, sync := range []bool{false, true} {
		r.Write(7, fd, data, 8192, sync)
		if c := one(); c != (Completion{ID: 7, N: 4096}) {
			t.Errorf("Write(sync %v) = %+v", sync, c)
		}
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file does not hold what was written: %v", err)
	}
	r.Sync(8, fd)
	if c := one(); c != (Completion{ID: 8}) {
		t.Errorf("Sync = %+v", c)
	}
	r.Read(9, fd, got, 1<<20-100)
	if c := one(); c != (Completion{ID: 9, N: 100}) {
		t.Errorf("a read across the end = %+v", c)
	}
	r.Read(10, -1, got, 0)
	if c := one(); c != (Completion{ID: 10, Errno: syscall.EBADF}) {
		t.Errorf("a read of no file = %+v", c)
	}
	// An error ends a batch in some kernels: all of it goes through all the same.
	r.Read(11, -1, got, 0)
	r.Read(12, fd, got, 0)
	r.Read(13, fd, got, 0)
	for range 3 {
		enter(t, r, true)
		if _, ok := r.Next(); !ok {
			t.Fatal("a completion is missing")
		}
	}
	if r.Unsubmitted() != 0 {
		t.Errorf("%d are left", r.Unsubmitted())
	}
	runtime.KeepAlive(data)
	runtime.KeepAlive(got)
}

// TestEnterDoesNotWait: without wait it returns at once, and what completes
// later is found by a later call.
func TestEnterDoesNotWait(t *testing.T) {
	with(t, func(t *testing.T) {
		var p [2]int
		if err := syscall.Pipe(p[:]); err != nil {
			t.Fatal(err)
		}
		r := ring(t, 4)
		buf := make([]byte, 16)
		r.Read(1, p[0], buf, -1)
		enter(t, r, false)
		if c, ok := r.Next(); ok {
			t.Fatalf("a read of an empty pipe: %+v", c)
		}
		if _, err := syscall.Write(p[1], []byte("hello")); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(time.Minute)
		for {
			enter(t, r, false)
			if c, ok := r.Next(); ok {
				if c != (Completion{ID: 1, N: 5}) || string(buf[:5]) != "hello" {
					t.Errorf("%+v, %q", c, buf[:5])
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("Enter(false) never finds the completion")
			}
		}
		_, _ = syscall.Close(p[0]), syscall.Close(p[1])
	})
}

// TestInterrupted: signals while it waits do no harm (EINTR).
func TestInterrupted(t *testing.T) {
	var p [2]int
	if err := syscall.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = syscall.Close(p[0]), syscall.Close(p[1]) }()
	r := ring(t, 4)
	tid := syscall.Gettid()
	go func() {
		for range 20 {
			_ = syscall.Tgkill(syscall.Getpid(), tid, syscall.SIGURG) // the runtime's own: no handler of ours
			time.Sleep(time.Millisecond)
		}
		_, _ = syscall.Write(p[1], []byte("x"))
	}()
	buf := make([]byte, 16)
	r.Read(1, p[0], buf, -1)
	enter(t, r, true)
	if c, ok := r.Next(); !ok || c != (Completion{ID: 1, N: 1}) {
		t.Errorf("%+v, %v", c, ok)
	}
	runtime.KeepAlive(buf)
}

func TestTakeBack(t *testing.T) {
	_, fd := file(t)
	r := ring(t, 4)
	buf := make([]byte, 4096)
	for round := range 10 {
		for id := range 4 {
			r.Read(uint64(id), fd, buf, 0)
		}
		for id := 3; id > 0; id-- {
			if got := r.TakeBack(); got != uint64(id) {
				t.Fatalf("round %d: took back %d, want %d", round, got, id)
			}
		}
		enter(t, r, true)
		if c, ok := r.Next(); !ok || c.ID != 0 {
			t.Fatalf("round %d: %+v", round, c)
		}
		if c, ok := r.Next(); ok {
			t.Fatalf("round %d: %+v was carried out", round, c)
		}
	}
	runtime.KeepAlive(buf)
}

// TestRegister: transfers within registered memory, across its ends, and outside.
func TestRegister(t *testing.T) {
	with(t, func(t *testing.T) {
		f, fd := file(t)
		r := ring(t, 8)
		all, err := sys.MapAnonymous(8 * 4096)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sys.Unmap(all) })
		if err := r.Register(all[4096 : 6*4096]); err != nil {
			t.Fatal(err)
		}
		one := func() Completion {
			enter(t, r, true)
			c, _ := r.Next()
			return c
		}
		for _, tt := range []struct {
			from, n int
			fixed   bool
		}{
			{4096, 4096, true}, {5 * 4096, 4096, true}, {4096, 5 * 4096, true}, {8192, 512, true},
			{0, 4096, false}, {6 * 4096, 4096, false}, {0, 8192, false}, {5 * 4096, 8192, false}, {0, 8 * 4096, false},
		} {
			p := all[tt.from : tt.from+tt.n]
			if r.registered(p) != tt.fixed {
				t.Errorf("%d bytes at %d are registered: %v", tt.n, tt.from, !tt.fixed)
			}
			r.Read(1, fd, p, 3*4096)
			if c := one(); c != (Completion{ID: 1, N: tt.n}) || p[0] != 3 || p[tt.n-1] != byte(3+(tt.n-1)/4096) {
				t.Errorf("a read to %d bytes at %d: %+v, %d", tt.n, tt.from, c, p[0])
			}
			for i := range p {
				p[i] = byte(tt.from>>12 + 100)
			}
			for _, sync := range []bool{false, true} {
				r.Write(2, fd, p, 128*4096, sync)
				if c := one(); c != (Completion{ID: 2, N: tt.n}) {
					t.Errorf("a write of %d bytes at %d: %+v", tt.n, tt.from, c)
				}
			}
			got := make([]byte, tt.n)
			if _, err := f.ReadAt(got, 128*4096); err != nil || !bytes.Equal(got, p) {
				t.Errorf("a write of %d bytes at %d is not in the file: %v", tt.n, tt.from, err)
			}
		}
	})
}

// TestRegisterRefused: memory that cannot be registered is used all the same.
func TestRegisterRefused(t *testing.T) {
	_, fd := file(t)
	r := ring(t, 1)
	m, err := sys.MapAnonymous(2 * 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.Unmap(m) }()
	if err := sys.Guard(m[4096:]); err != nil {
		t.Fatal(err)
	}
	if err := r.Register(m); !errors.Is(err, syscall.EFAULT) {
		t.Fatalf("half of it cannot be touched: %v, want EFAULT", err)
	}
	r.Read(1, fd, m[:4096], 7*4096)
	enter(t, r, true)
	if c, _ := r.Next(); c != (Completion{ID: 1, N: 4096}) || m[0] != 7 {
		t.Errorf("%+v, %d", c, m[0])
	}
}

func TestRefused(t *testing.T) {
	for _, n := range []int{-1, 0, MaxEntries + 1} {
		if _, err := New(n); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("a ring of %d: %v", n, err)
		}
	}
	if err := Probe(); err != nil {
		t.Errorf("Probe: %v", err)
	}
	// A failure leaves nothing behind: as many descriptors as before.
	before := descriptors(t)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := New(4)
	if e := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("a ring without descriptors: %v, want EMFILE", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestAllocations(t *testing.T) {
	_, fd := file(t)
	r := ring(t, 4)
	buf := make([]byte, 4096)
	n := testing.AllocsPerRun(100, func() {
		r.Read(1, fd, buf, 0)
		if errno := r.Enter(true); errno != 0 {
			t.Fatal(errno)
		}
		if _, ok := r.Next(); !ok {
			t.Fatal("no completion")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a request", n)
	}
	runtime.KeepAlive(buf)
}
