package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func streamPair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// TestPeek looks at a message in three sends, one of them with a descriptor, and
// finds it again unchanged.
func TestPeek(t *testing.T) {
	a, b := streamPair(t)
	p := make([]byte, 64)
	if n, errno := PeekHead(a, p); errno != syscall.EAGAIN {
		t.Fatalf("an empty socket: %d, %v", n, errno)
	}
	for _, part := range []string{"one ", "two ", "three"} {
		file := -1
		if part == "two " {
			file = b
		}
		if n, errno := SendFile(b, []byte(part), file); errno != 0 || n != len(part) {
			t.Fatalf("sending: %d, %v", n, errno)
		}
	}
	for range 2 {
		if n, errno := PeekHead(a, p[:6]); errno != 0 || string(p[:n]) != "one tw" {
			t.Errorf("head %q, %v", p[:n], errno)
		}
		n, fds, errno := PeekFiles(a, p)
		if errno != 0 || string(p[:n]) != "one two " || len(fds) != 1 {
			t.Fatalf("%q with %d descriptors, %v", p[:n], len(fds), errno)
		}
		unix.Close(fds[0])
		if err := PeekFrom(a, n); err != nil {
			t.Fatal(err)
		}
		n, fds, errno = PeekFiles(a, p)
		if errno != 0 || string(p[:n]) != "three" || len(fds) != 0 {
			t.Errorf("behind it %q with %d descriptors, %v", p[:n], len(fds), errno)
		}
		if err := PeekFrom(a, -1); err != nil {
			t.Fatal(err)
		}
	}
	n, errno := RecvNow(a, p)
	if errno != 0 || string(p[:n]) != "one two " {
		t.Errorf("received %q, %v", p[:n], errno)
	}
	if err := unix.Shutdown(b, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	RecvNow(a, p)
	if n, errno := PeekHead(a, p); n != 0 || errno != 0 {
		t.Errorf("at the end of the stream: %d, %v", n, errno)
	}
}

func TestPeekTooManyFiles(t *testing.T) {
	a, b := streamPair(t)
	fds := make([]int, MaxPassed+5)
	for i := range fds {
		fds[i] = b
	}
	if err := unix.Sendmsg(b, []byte("x"), unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	if _, got, errno := PeekFiles(a, make([]byte, 1)); errno != syscall.EMSGSIZE || got != nil {
		t.Errorf("%d descriptors, %v", len(got), errno)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestMapGuest(t *testing.T) {
	f, err := Memfd("guest", 3*int64(PageSize))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	page := uint64(PageSize)
	for _, tt := range []struct {
		off, size uint64
		want      error
	}{
		{0, 3 * page, nil}, {page, page, nil}, {100, 200, nil}, {3*page - 1, 1, nil},
		{0, 3*page + 1, unix.ENXIO}, {3 * page, 1, unix.ENXIO}, {0, 0, unix.ENXIO},
		{1 << 63, 1, unix.ENXIO}, {1, 1<<64 - 1, unix.ENXIO}, {page, 1<<63 - 1, unix.ENXIO},
	} {
		whole, host, err := MapGuest(fd, tt.off, tt.size)
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%d bytes at %d: %v, want %v", tt.size, tt.off, err, tt.want)
		}
		if err != nil {
			continue
		}
		if uint64(len(host)) != tt.size {
			t.Errorf("%d bytes at %d: %d are mapped", tt.size, tt.off, len(host))
		}
		mark := fmt.Appendf(nil, "%d", tt.off)
		n := copy(host, mark)
		got := make([]byte, n)
		if _, err := f.ReadAt(got, int64(tt.off)); err != nil || !bytes.Equal(got, mark[:n]) {
			t.Errorf("at %d the file holds %q, %v", tt.off, got, err)
		}
		if err := Unmap(whole); err != nil {
			t.Error(err)
		}
	}
	a, _ := streamPair(t)
	if _, _, err := MapGuest(a, 0, 1); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a socket: %v", err)
	}
	for path, want := range map[string]error{
		"/sys/kernel/uevent_seqnum": unix.ENODEV, // a regular file of a page's size
		"/dev/zero":                 unix.ENODEV,
		filepath.Join("/dev/shm", fmt.Sprintf("vacate-guest-%d", os.Getpid())): nil, // tmpfs
	} {
		if want == nil {
			if err := os.WriteFile(path, make([]byte, PageSize), 0o600); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(path)
		}
		f, err := os.OpenFile(path, os.O_RDONLY, 0)
		if want == nil {
			f, err = os.OpenFile(path, os.O_RDWR, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := Descriptor(f)
		if err != nil {
			t.Fatal(err)
		}
		whole, _, err := MapGuest(fd, 0, 1)
		if !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), "does not lie in memory") {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			if err := Unmap(whole); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestQuietFile holds a non-blocking eventfd in a file that Go's poller does not
// watch: epoll would know of its descriptor.
func TestQuietFile(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		fd, err := NewEvent()
		if err != nil {
			t.Fatal(err)
		}
		inode := "tfd:"
		var f *os.File
		if quiet {
			f = newFile(fd, "event")
		} else {
			f = os.NewFile(uintptr(fd), "event")
		}
		n, err := Descriptor(f)
		if err != nil {
			t.Fatal(err)
		}
		if errno := SignalEvent(n); errno != 0 {
			t.Errorf("signalling: %v", errno)
		}
		if got := watched(t, inode, n); got == quiet {
			t.Errorf("quiet %v: the poller watches it: %v", quiet, got)
		}
		fd, err = Detach(f)
		if err != nil {
			t.Fatal(err)
		}
		if errno := ClearEvent(fd); errno != 0 {
			t.Errorf("it was signalled: %v", errno)
		}
		unix.Close(fd)
	}
}

// watched looks for a descriptor in what the process's epolls say of themselves.
func watched(t *testing.T, key string, fd int) bool {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range e {
		b, err := os.ReadFile("/proc/self/fdinfo/" + x.Name())
		if err != nil {
			continue // it is the folder's own
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 1 && f[0] == key && f[1] == fmt.Sprint(fd) {
				return true
			}
		}
	}
	return false
}
