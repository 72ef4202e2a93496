package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOpenProgram runs what was opened, whatever lies at its path by then. (Exec
// is held by the tests of packages handoff and keeper.)
func TestOpenProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	b, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := OpenProgram(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Cmd{Path: ProgramPath(3), Args: []string{path}, ExtraFiles: []*os.File{f}}
	if err := cmd.Run(); err != nil {
		t.Errorf("running a program that was removed: %v", err)
	}
	if _, err := OpenProgram(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening a program that is away: %v", err)
	}
}

// TestDescriptor leaves a socket as it is, which Fd would make wait.
func TestDescriptor(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "a")
	defer f.Close()
	defer syscall.Close(fds[1])
	if fd, err := Descriptor(f); err != nil || fd != fds[0] {
		t.Errorf("descriptor %d, %v; want %d", fd, err, fds[0])
	}
	if n, err := syscall.Read(fds[0], make([]byte, 1)); err != syscall.EAGAIN {
		t.Errorf("read %d bytes, %v; want EAGAIN", n, err)
	}
	f.Close()
	if _, err := Descriptor(f); err == nil {
		t.Error("a closed file has a descriptor")
	}
}

func TestAdopt(t *testing.T) {
	fd, err := syscall.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Adopt(fd, "a")
	if err != nil {
		t.Fatal(err)
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
		t.Errorf("flags %d, %v: a child would get it", flags, errno)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(1_000_000, "a"); !errors.Is(err, syscall.EBADF) {
		t.Errorf("taking over what is not open: %v", err)
	}
}

// TestExecFails leaves the process as it was: also how many files it may have.
func TestExecFails(t *testing.T) {
	out, err := exec.Command("sh", "-c", "ulimit -S -n 64; "+partEnv+"=exec exec \"$0\"", os.Args[0]).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "exec format error, limit as before: true, closed on exec: true" {
		t.Errorf("%q, %v", got, err)
	}
}

// partExec tries to run what is no program.
func partExec() {
	r, w, err := os.Pipe()
	if err == nil {
		defer w.Close()
		var text *os.File
		if text, err = os.CreateTemp("", "vacate-test"); err == nil {
			defer os.Remove(text.Name())
			err = errors.Join(text.Chmod(0o700), text.Close())
		}
		if err == nil {
			text, err = OpenProgram(text.Name())
		}
		if err == nil {
			err = partExecOf(text, r)
		}
	}
	if err != nil {
		fmt.Println(err)
	}
}

func partExecOf(text, keep *os.File) error {
	var before, after syscall.Rlimit
	fd, err := Descriptor(keep)
	if err := errors.Join(err, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before)); err != nil {
		return err
	}
	failed := Exec(text, []string{"text"}, nil, []int{fd})
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &after); err != nil {
		return err
	}
	flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
	var errno syscall.Errno
	errors.As(failed, &errno)
	fmt.Printf("%v, limit as before: %v, closed on exec: %v\n", errno, before == after && before.Cur > 64, flags&syscall.FD_CLOEXEC != 0)
	return nil
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@vacate-test-notify"} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := Notify(name, "READY=1\nSTATUS=serving"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1\nSTATUS=serving" {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
		for sent := 0; ; sent++ { // it does not read any more
			if err := Notify(name, "WATCHDOG=1"); errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil || sent > 100_000 {
				t.Fatalf("%s: after %d: %v", name, sent, err)
			}
		}
		l.Close()
		if err := Notify(name, "READY=1"); err == nil {
			t.Errorf("%s: nobody listens, and that is no error", name)
		}
	}
}

// TestPacketNow sends and receives without waiting, until there is no room.
func TestPacketNow(t *testing.T) {
	a, b := packetConns(t)
	buf := make([]byte, 64)
	if _, err := b.RecvNow(buf); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("nothing was sent: %v", err)
	}
	sent := 0
	for ; ; sent++ {
		if err := a.SendNow(buf, nil); errors.Is(err, syscall.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	waited := make(chan error, 1)
	go func() { waited <- b.Wait() }()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	for range sent {
		if _, err := b.RecvNow(buf); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d packets find room", sent)
	go func() { waited <- b.Wait() }()
	if err := a.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if _, err := b.RecvNow(buf); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the other end is closed: %v", err)
	}
}

func packetConns(t *testing.T) (a, b *PacketConn) {
	t.Helper()
	fa, fb, err := PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	a, aerr := NewPacketConn(fa)
	b, berr := NewPacketConn(fb)
	if err := errors.Join(aerr, berr, fa.Close(), fb.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return a, b
}
