package sys

import (
	"bytes"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestWake: a thread that waits is woken and has lost nothing, as often as one
// likes; the other calls do not notice.
func TestWake(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	defer closeFD(t, fds[1])
	tid := make(chan int)
	got := make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := Wakeable(); err != nil {
			t.Error(err)
		}
		tid <- syscall.Gettid()
		b := make([]byte, 8)
		for {
			n, errno := RecvWake(fds[1], b)
			if errno == 0 && !bytes.Equal(b[:n], []byte("abc")) {
				t.Errorf("RecvWake = %q", b[:n])
			}
			got <- errno
			if errno != syscall.EINTR {
				break
			}
		}
		if n, errno := Recv(fds[1], b); n != 3 || errno != 0 { // sleeps through it
			t.Errorf("Recv = %d, %v", n, errno)
		}
		got <- 0
	}()
	thread := <-tid
	// wake repeats Wake until the thread has gone on, and returns what it said.
	wake := func() syscall.Errno {
		for {
			if err := Wake(thread); err != nil {
				t.Fatal(err)
			}
			select {
			case errno := <-got:
				return errno
			case <-time.After(time.Millisecond):
			}
		}
	}
	for range 3 {
		if errno := wake(); errno != syscall.EINTR {
			t.Errorf("woken with %v, want EINTR", errno)
		}
	}
	time.Sleep(5 * time.Millisecond) // it waits again, unless it was woken twice
	if _, errno := Send(fds[0], []byte("abc")); errno != 0 {
		t.Fatal(errno)
	}
	for errno := range got {
		if errno == 0 {
			break
		}
	}
	for range 20 { // now it is in Recv
		if err := Wake(thread); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Microsecond)
	}
	if _, errno := Send(fds[0], []byte("abc")); errno != 0 {
		t.Fatal(errno)
	}
	<-got
}
