package uring

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"vacate/internal/sys"
)

// TestBig: a driver without commands says so, as often as it is asked; the ring wraps.
func TestBig(t *testing.T) {
	if n := unsafe.Sizeof(sys.UringBigSQE{}); n != 128 {
		t.Fatalf("a big submission has %d bytes", n)
	}
	if off := unsafe.Offsetof(sys.UringSQE{}.Cmd); off != 48 {
		t.Fatalf("its command lies at %d", off)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b, err := NewBig()
	if err != nil {
		t.Fatal(err)
	}
	_, fd := file(t)
	for i := range 10 {
		if n, errno := b.Command(fd, 1, make([]byte, MaxCommand)); n != 0 || errno != syscall.EOPNOTSUPP {
			t.Fatalf("command %d to a file: %d, %v, want EOPNOTSUPP", i, n, errno)
		}
		if n, errno := b.Command(-1, 1, nil); n != 0 || errno != syscall.EBADF {
			t.Fatalf("command %d to nothing: %d, %v, want EBADF", i, n, errno)
		}
	}
	if _, errno := b.Command(fd, 1, make([]byte, MaxCommand+1)); errno != syscall.EINVAL {
		t.Errorf("a command that is too long: %v", errno)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
