package sys

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEvent(t *testing.T) {
	fd, err := NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fd) //nolint:errcheck // a test's
	if errno := ClearEvent(fd); errno != syscall.EAGAIN {
		t.Errorf("clearing an event that is not signalled: %v, want EAGAIN", errno)
	}
	for range 3 {
		if errno := SignalEvent(fd); errno != 0 {
			t.Fatal(errno)
		}
	}
	if errno := ClearEvent(fd); errno != 0 {
		t.Errorf("clearing a signalled event: %v", errno)
	}
	if errno := ClearEvent(fd); errno != syscall.EAGAIN {
		t.Errorf("clearing it again: %v, want EAGAIN", errno)
	}
	if n := testing.AllocsPerRun(100, func() { SignalEvent(fd); ClearEvent(fd) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestAdoptEvent: what strangers send is an event descriptor, and cannot block us.
func TestAdoptEvent(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // blocking
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fd) //nolint:errcheck // a test's
	if errno := ClearEvent(fd); errno != syscall.EAGAIN {
		t.Errorf("clearing a blocking event: %v, want EAGAIN", errno)
	}
	if err := AdoptEvent(fd); err != nil {
		t.Fatal(err)
	}
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := unix.Write(fd, full[:]); err != nil {
		t.Fatal(err)
	}
	if errno := SignalEvent(fd); errno != syscall.EAGAIN {
		t.Errorf("signalling a full event: %v, want EAGAIN", errno)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // a test's
	defer w.Close() //nolint:errcheck // a test's
	n, err := Descriptor(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := AdoptEvent(n); !errors.Is(err, ErrNoEvent) {
		t.Errorf("adopting a pipe: %v, want ErrNoEvent", err)
	}
	if err := AdoptEvent(-1); err == nil {
		t.Error("adopted no descriptor at all")
	}
}
