package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAttributeStays(t *testing.T) {
	fd, err := OpenAttribute("/sys/kernel/mm/transparent_hugepage/enabled")
	if errors.Is(err, fs.ErrNotExist) {
		fd, err = OpenAttribute("/sys/kernel/notes")
	}
	if err != nil {
		t.Fatal(err)
	}
	if Vanished([]int{fd}) {
		t.Error("a file that is there has vanished")
	}
	both := []int{fd, fd}
	if Vanished(both) {
		t.Error("of two files that are there one has vanished")
	}
	if n := testing.AllocsPerRun(100, func() { Vanished(both) }); n != 0 {
		t.Errorf("looking allocates %v times", n)
	}
	if err := CloseFD(fd); err != nil {
		t.Fatal(err)
	}
	if !Vanished([]int{fd}) {
		t.Error("a descriptor that is closed vouches for a file")
	}
	if _, err := OpenAttribute(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening what is not there: %v", err)
	}
}

// TestAttributeStaysUnderSignals: a signal while a file is looked at is not its end.
func TestAttributeStaysUnderSignals(t *testing.T) {
	fd, err := OpenAttribute("/sys/kernel/notes")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fd) //nolint:errcheck // a test's
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := Wakeable(); err != nil {
		t.Fatal(err)
	}
	tid, stop, sent := unix.Gettid(), make(chan struct{}), make(chan int, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				sent <- n
				return
			default:
				if err := Wake(tid); err != nil && !errors.Is(err, unix.EAGAIN) { // as many wait as may
					t.Error(err)
					sent <- n
					return
				}
			}
		}
	}()
	vanished := 0
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		if Vanished([]int{fd}) {
			vanished++
		}
	}
	close(stop)
	if n := <-sent; vanished > 0 || n == 0 {
		t.Errorf("%d looks at a file that is there, while %d signals came, found it gone", vanished, n)
	}
}

// TestAttributeVanishes takes a device away: a loop device, which has nothing to
// do with any other.
func TestAttributeVanishes(t *testing.T) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil && os.Getenv("CI") == "" && (errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0) {
		t.Skipf("no loop device can be made: %v", err) // test/vm does the same with a drive
	}
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	const number = 977
	add := func() {
		t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_ADD, number); errno != 0 {
			t.Fatal(errno)
		}
	}
	remove := func() {
		t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_REMOVE, number); errno != 0 {
			t.Fatal(errno)
		}
	}
	path := fmt.Sprintf("/sys/block/loop%d/size", number)
	add()
	fd, err := OpenAttribute(path)
	if err != nil {
		remove()
		t.Fatal(err)
	}
	defer CloseFD(fd) //nolint:errcheck // a test's
	there, err := OpenAttribute("/sys/kernel/notes")
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(there) //nolint:errcheck // a test's
	before := Vanished([]int{fd})
	remove()
	after := Vanished([]int{fd}) && Vanished([]int{there, fd}) && Vanished([]int{fd, there}) && !Vanished([]int{there})
	add() // again, under the same name
	back := Vanished([]int{fd})
	remove()
	if before || !after || !back {
		t.Errorf("vanished: %v while it was there, %v when it was gone, %v when another had its name", before, after, back)
	}
}
