package sys

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestConnection(t *testing.T) {
	a, b, err := StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := syscall.SetNonblock(int(b.Fd()), true); err != nil {
		t.Fatal(err)
	}
	fd, err := Connection(b)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(t, fd)
	if err := b.Close(); err != nil { // fd lives on
		t.Error(err)
	}
	if _, err := a.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2)
	if n, errno := Recv(fd, p); n != 1 || errno != 0 {
		t.Errorf("Recv = %d, %v", n, errno)
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	if errno != 0 || flags&syscall.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v, want blocking mode", flags, errno)
	}

	packet, other, err := PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	defer other.Close()
	if _, err := Connection(packet); !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("a packet socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "l"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	if _, err := Connection(lf); !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("a listening socket: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := Connection(null); !errors.Is(err, syscall.ENOTSOCK) {
		t.Errorf("a file: %v", err)
	}
}
