package sys

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverwriteSignalFrame: the signal is handled when the call returns, also by a
// thread that has it blocked, as all have in a process that was started so; and
// blocked it stays.
func TestOverwriteSignalFrame(t *testing.T) {
	const bit = uint64(1) << (syscall.SIGURG - 1)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, before unix.Sigset_t
	set.Val[0] = bit
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) //nolint:errcheck // it was valid before
	// The control: a signal that is not handled is seen.
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGURG); err != nil {
		t.Fatal(err)
	}
	if signals(t, "SigPnd")&bit == 0 {
		t.Fatal("a signal that is blocked does not wait: this test finds nothing")
	}
	OverwriteSignalFrame()
	if signals(t, "SigPnd")&bit != 0 {
		t.Error("the signal waits: it has overwritten nothing")
	}
	if signals(t, "SigBlk")&bit == 0 {
		t.Error("the signal was blocked, and is no longer")
	}
}

// signals returns a set of signals of the calling thread (proc(5), status).
func signals(t *testing.T, name string) (set uint64) {
	t.Helper()
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "\n"+name+":")
	if _, err := fmt.Sscanf(after, "%x", &set); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return set
}
