package sys

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func socketpair(t *testing.T) [2]int {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds
}

func closeFD(t *testing.T, fd int) {
	t.Helper()
	if err := CloseFD(fd); err != nil {
		t.Error(err)
	}
}

func TestSendRecv(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	if err := SetSocketBuffers(fds[0], 64<<10, 64<<10); err != nil {
		t.Error(err)
	}
	b := make([]byte, 16)
	if n, errno := RecvNow(fds[1], b); n != 0 || errno != syscall.EAGAIN {
		t.Errorf("RecvNow of nothing = %d, %v, want EAGAIN", n, errno)
	}
	for name, f := range map[string]func(int, []byte) (int, syscall.Errno){"Send": Send, "SendNow": SendNow} {
		if n, errno := f(fds[0], []byte("abc")); n != 3 || errno != 0 {
			t.Errorf("%s = %d, %v", name, n, errno)
		}
	}
	if n, errno := RecvNow(fds[1], b[:4]); n != 4 || errno != 0 {
		t.Errorf("RecvNow = %d, %v", n, errno)
	}
	if n, errno := Recv(fds[1], b[4:]); n != 2 || errno != 0 || !bytes.Equal(b[:6], []byte("abcabc")) {
		t.Errorf("Recv = %d, %v, %q", n, errno, b[:6])
	}
	for {
		n, errno := SendNow(fds[0], make([]byte, 64<<10))
		if errno == syscall.EAGAIN {
			break
		}
		if errno != 0 || n <= 0 {
			t.Fatalf("SendNow = %d, %v, want EAGAIN in the end", n, errno)
		}
	}
	closeFD(t, fds[1])
	if n, errno := Send(fds[0], b); n != 0 || errno != syscall.EPIPE {
		t.Errorf("Send to nobody = %d, %v, want EPIPE", n, errno)
	}
	if CloseFD(-1) == nil || Shutdown(-1) == nil || SetSocketBuffers(-1, 1, 0) == nil || SetSocketBuffers(-1, 0, 1) == nil {
		t.Error("calls on no descriptor succeed")
	}
	if _, err := PeerUID(-1); err == nil {
		t.Error("PeerUID of no descriptor succeeds")
	}
}

// TestShutdownWakes: a thread that waits for its peer returns.
func TestShutdownWakes(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	defer closeFD(t, fds[1])
	received := make(chan syscall.Errno)
	go func() {
		n, errno := Recv(fds[0], make([]byte, 1))
		if n != 0 {
			errno = syscall.EBADMSG
		}
		received <- errno
	}()
	time.Sleep(10 * time.Millisecond)
	if err := Shutdown(fds[0]); err != nil {
		t.Fatal(err)
	}
	if errno := <-received; errno != 0 {
		t.Errorf("Recv over Shutdown: %v, want the end of the stream", errno)
	}
}

func TestListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := Listener(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := mine.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan int)
	ended := make(chan error)
	go func() {
		for {
			fd, errno := -1, syscall.Errno(0)
			err := raw.Read(func(l uintptr) bool {
				fd, errno = Accept(int(l))
				return errno != syscall.EAGAIN
			})
			if err != nil {
				ended <- err
				return
			}
			accepted <- fd
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd := <-accepted
	defer closeFD(t, fd)
	if uid, err := PeerUID(fd); err != nil || uid != uint32(os.Getuid()) {
		t.Errorf("PeerUID = %d, %v, want %d", uid, err, os.Getuid())
	}
	if err := mine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "closed file") {
		t.Errorf("waiting over Close: %v, want that the file is closed", err)
	}
	if _, err := Listener(mine); err == nil {
		t.Error("Listener of a closed file succeeds")
	}
}

// TestListenerRefuses what no client could ever be accepted from.
func TestListenerRefuses(t *testing.T) {
	pair := socketpair(t)
	closeFD(t, pair[1])
	connected := os.NewFile(uintptr(pair[0]), "connected")
	defer connected.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for f, want := range map[*os.File]syscall.Errno{file: syscall.ENOTSOCK, connected: syscall.EINVAL} {
		if _, err := Listener(f); !errors.Is(err, want) {
			t.Errorf("Listener of %s: %v, want %v", f.Name(), err, want)
		}
	}
}

// TestSocketAllocations: the data path allocates nothing.
func TestSocketAllocations(t *testing.T) {
	fds := socketpair(t)
	defer closeFD(t, fds[0])
	defer closeFD(t, fds[1])
	b := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = SendNow(fds[0], b)
		_, _ = Recv(fds[1], b)
		_, _ = Send(fds[0], b)
		_, _ = RecvNow(fds[1], b)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
