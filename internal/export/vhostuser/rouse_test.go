package vhostuser

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
)

// TestRoused: a session whose thread a frontend holds up, by an event descriptor
// that is full and blocks, comes to its end all the same.
func TestRoused(t *testing.T) {
	event, err := sys.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.CloseFD(event) }()
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := syscall.Write(event, full[:]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(event, false); err != nil {
		t.Fatal(err)
	}
	srv := &Server{}
	s := &session{server: srv, ended: make(chan struct{})}
	result := make(chan syscall.Errno, 1)
	go func() {
		runtime.LockOSThread()
		if err := sys.Wakeable(); err != nil {
			t.Error(err)
		}
		s.tid.Store(int32(syscall.Gettid()))
		result <- sys.SignalEvent(event)
		s.mu.Lock()
		s.over = true
		s.mu.Unlock()
		close(s.ended)
	}()
	s.hasten()
	select {
	case errno := <-result:
		if errno != syscall.EINTR {
			t.Errorf("the call ended with %v, want EINTR", errno)
		}
		srv.sessions.Wait() // who rouses ends with the session
	case <-time.After(time.Minute):
		sys.ClearEvent(event)
		t.Fatal("nobody interrupts the thread")
	}
}
