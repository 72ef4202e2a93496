package sys

import (
	"bytes"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaitReady(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	ready := []Ready{{FD: -1, Events: ReadyRead}, {FD: int32(fds[0]), Events: ReadyRead}}
	start := time.Now()
	if errno := WaitReady(ready, 0, int64(20*time.Millisecond)); errno != 0 || ready[1].Got != 0 || time.Since(start) < 20*time.Millisecond {
		t.Errorf("waiting for nothing: %v, %+v after %v", errno, ready, time.Since(start))
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if errno := WaitReady(ready, now.Nano()+int64(10*time.Millisecond), 0); errno != 0 || time.Since(start) < 9*time.Millisecond {
		t.Errorf("waiting until due: %v after %v", errno, time.Since(start))
	}
	start = time.Now()
	for _, due := range []int64{1, now.Nano()} { // both have passed
		if errno := WaitReady(ready, due, int64(time.Minute)); errno != 0 || time.Since(start) > 10*time.Second {
			t.Errorf("waiting until what has passed: %v after %v", errno, time.Since(start))
		}
	}
	if _, errno := SendNow(fds[1], []byte("a")); errno != 0 {
		t.Fatal(errno)
	}
	if errno := WaitReady(ready, 0, 0); errno != 0 || ready[1].Got != ReadyRead || ready[0].Got != 0 {
		t.Errorf("with a byte to read: %v, %+v", errno, ready)
	}
	ready[1].Events = ReadyWrite
	if errno := WaitReady(ready, 0, 0); errno != 0 || ready[1].Got != ReadyWrite {
		t.Errorf("with room to write: %v, %+v", errno, ready)
	}
	closeFD(t, fds[1])
	ready[1].Events = 0
	if errno := WaitReady(ready, 0, 0); errno != 0 || ready[1].Got&ReadyHangup == 0 {
		t.Errorf("with nobody there: %v, %+v", errno, ready)
	}
}

// TestWaitReadyWakes: Wake ends a wait.
func TestWaitReadyWakes(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	defer closeFD(t, fds[1])
	tid, woken := make(chan int), make(chan syscall.Errno, 1)
	go func() {
		runtime.LockOSThread()
		if err := Wakeable(); err != nil {
			t.Error(err)
		}
		tid <- syscall.Gettid()
		for {
			if errno := WaitReady([]Ready{{FD: int32(fds[0]), Events: ReadyRead}}, 0, 0); errno != 0 {
				woken <- errno
				return
			}
		}
	}()
	for id := <-tid; ; time.Sleep(time.Millisecond) {
		select {
		case errno := <-woken:
			if errno != syscall.EINTR {
				t.Errorf("woken with %v, want EINTR", errno)
			}
			return
		default:
			if err := Wake(id); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestPieces(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	var p Pieces
	for round, parts := range [][]string{{"alone"}, {"one", "two", "three"}} {
		p.Reset()
		var want []byte
		for _, s := range parts {
			if !p.Add([]byte(s)) {
				t.Fatal("no room")
			}
			want = append(want, s...)
		}
		got := make([]byte, 100)
		if n, errno := p.SendNow(fds[0]); n != len(want) || errno != 0 {
			t.Errorf("round %d: sent %d, %v", round, n, errno)
		}
		if n, errno := RecvNow(fds[1], got); errno != 0 || !bytes.Equal(got[:n], want) {
			t.Errorf("round %d: received %q, %v, want %q", round, got[:n], errno, want)
		}
	}
	for p.Add(make([]byte, 4096)) {
	}
	if p.n != maxPieces {
		t.Errorf("%d pieces, want %d", p.n, maxPieces)
	}
	sent := 0
	for {
		n, errno := p.SendNow(fds[0])
		if errno == syscall.EAGAIN {
			break
		}
		if errno != 0 || n <= 0 {
			t.Fatalf("sent %d, %v, want EAGAIN in the end", n, errno)
		}
		sent += n
	}
	if sent == 0 {
		t.Error("nothing was sent")
	}
	closeFD(t, fds[1])
	if n, errno := p.SendNow(fds[0]); n != 0 || errno != syscall.EPIPE {
		t.Errorf("sent to nobody: %d, %v, want EPIPE", n, errno)
	}
}

func TestReadyAllocations(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	defer closeFD(t, fds[1])
	ready := []Ready{{FD: int32(fds[1]), Events: ReadyRead}}
	a, b, in := make([]byte, 100), make([]byte, 100), make([]byte, 4096)
	var p Pieces
	if n := testing.AllocsPerRun(100, func() {
		p.Reset()
		p.Add(a)
		p.Add(b)
		_, _ = p.SendNow(fds[0])
		_ = WaitReady(ready, 0, 0)
		_, _ = RecvNow(fds[1], in)
		_ = WaitReady(ready, 1, 5)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
