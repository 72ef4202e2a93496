package mem

import (
	"errors"
	"fmt"
	"syscall"

	"vacate/internal/sys"
)

// A LockError is memory that the system refused to lock. It unwraps to the
// system's error.
type LockError struct {
	Size   uint64 // bytes that were to be locked
	Limit  uint64 // RLIMIT_MEMLOCK, bytes
	Locked uint64 // bytes that this process had locked already
	Err    error
}

func (e *LockError) Error() string {
	return fmt.Sprintf("locking %s of memory: %v: RLIMIT_MEMLOCK allows %s, %s are in use; "+
		"allow at least %s (systemd: LimitMEMLOCK=%d; shell: ulimit -l %d; containers: --ulimit memlock=%d) or give CAP_IPC_LOCK",
		kib(e.Size), e.Err, kib(e.Limit), kib(e.Locked),
		kib(e.need()), e.need(), e.need()>>10, e.need())
}

// Unwrap returns the system's error.
func (e *LockError) Unwrap() error { return e.Err }

// need is the limit that would have been enough, in whole KiB.
func (e *LockError) need() uint64 { return (e.Locked + e.Size + 1023) &^ 1023 }

func kib(n uint64) string { return fmt.Sprintf("%d KiB", (n+1023)>>10) }

// explain makes a LockError of the errors with which the kernel refuses to lock
// (mlock(2): ENOMEM and EPERM; mmap(2) of locked memory: EAGAIN).
func explain(size int, err error) error {
	if errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EAGAIN) {
		limit, locked := sys.Memlock()
		return &LockError{Size: uint64(size), Limit: limit, Locked: locked, Err: err}
	}
	return err
}
