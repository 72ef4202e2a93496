package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/sys"
)

// What a vhost-user session is made of: the guest's memory and its event
// descriptors come over the connection, and the engine makes files in memory of
// its own. No name is opened for any of it.

// guestMark is what the parent writes into the guest's memory, and guestSize how
// much there is of that.
const (
	guestMark = "a request"
	guestSize = 1 << 20
)

// sendSession sends the guest's memory and events as a frontend does. The last one
// is told when the child has used all that.
func sendSession(t *testing.T, c net.Conn) (told *os.File) {
	t.Helper()
	guest, err := sys.Memfd("guest", guestSize)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if _, err := guest.WriteAt([]byte(guestMark), 4096); err != nil {
		t.Fatal(err)
	}
	rights := []int{fdOf(t, guest)}
	for range 2 {
		fd, err := sys.NewEvent()
		if err != nil {
			t.Fatal(err)
		}
		told = os.NewFile(uintptr(fd), "event")
		t.Cleanup(func() { told.Close() })
		rights = append(rights, fd)
	}
	if errno := sys.SignalEvent(rights[1]); errno != 0 { // the kick
		t.Fatal(errno)
	}
	if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte("session"), syscall.UnixRights(rights...), nil); err != nil {
		t.Fatal(err)
	}
	return told
}

func fdOf(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := sys.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// holdSession does what the engine does with such a message.
func holdSession(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fds []int
	var n int
	var errno syscall.Errno
	b := make([]byte, 64)
	if err := raw.Read(func(fd uintptr) bool {
		n, fds, errno = sys.PeekFiles(int(fd), b)
		return errno != syscall.EAGAIN
	}); err != nil || errno != 0 || len(fds) != 3 || string(b[:n]) != "session" {
		return fmt.Errorf("peeking: %q with %d descriptors, %w, %w", b[:n], len(fds), errno, err)
	}
	for _, fd := range fds {
		defer sys.CloseFD(fd)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != "session" { // consumed, with other duplicates
		return fmt.Errorf("consuming: %q, %w", b[:n], err)
	}
	whole, guest, err := sys.MapGuest(fds[0], 0, guestSize)
	if err != nil {
		return err
	}
	if got := string(guest[4096:][:len(guestMark)]); got != guestMark {
		return fmt.Errorf("the guest's memory says %q", got)
	}
	copy(guest[8192:], guestMark)
	if err := errors.Join(sys.AdoptEvent(fds[1]), sys.AdoptEvent(fds[2])); err != nil {
		return err
	}
	if errno := sys.ClearEvent(fds[1]); errno != 0 {
		return fmt.Errorf("taking the kick: %w", errno)
	}
	if errno := sys.ClearEvent(fds[1]); errno != syscall.EAGAIN {
		return fmt.Errorf("taking it again: %w", errno)
	}
	wake, err := sys.NewEvent()
	if err != nil {
		return err
	}
	session, err := sys.Memfd("session", 1<<16)
	if err != nil {
		return err
	}
	if errno := sys.SignalEvent(fds[2]); errno != 0 {
		return fmt.Errorf("calling the driver: %w", errno)
	}
	return errors.Join(sys.Unmap(whole), sys.CloseFD(wake), session.Close())
}

// runGuest makes memory that came from outside ready to be run.
func runGuest(world, order) error {
	f, err := sys.Memfd("guest", guestSize)
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := sys.Descriptor(f)
	if err != nil {
		return err
	}
	return call6("mmap", 0, guestSize, syscall.PROT_READ|syscall.PROT_EXEC, syscall.MAP_SHARED, uintptr(fd), 0)
}

// rootFolder is open since before the sandbox, as one that a frontend sent.
var rootFolder = func() int {
	if os.Getenv(childVar) == "" {
		return -1
	}
	fd, err := syscall.Open("/", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return fd
}()

// openBeneath opens a file by its name in that folder.
func openBeneath(name string, flags uintptr) func(world, order) error {
	return func(world, order) error {
		path, err := syscall.BytePtrFromString(name)
		if err != nil {
			return err
		}
		return call6("openat", uintptr(rootFolder), uintptr(unsafe.Pointer(path)), flags)
	}
}

// checkSession looks at what the child did with what was sent.
func checkSession(t *testing.T, told *os.File) {
	t.Helper()
	fd := fdOf(t, told)
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		errno := sys.ClearEvent(fd)
		if errno == 0 {
			return
		}
		if errno != syscall.EAGAIN || time.Now().After(end) {
			t.Errorf("the driver was not called: %s", strconv.Quote(errno.Error()))
			return
		}
	}
}
