package held

import (
	"os"
	"syscall"

	"vacate/internal/fail"
)

// remap holds file as the slot's block map, instead of the one that is there: the
// next engine takes over either one or the other.
func (h *Held) remap(s *slot, file *os.File) syscall.Errno {
	old := s.bits
	if old == nil {
		return syscall.ENOENT
	}
	s.bits = file
	h.closing.Go(func() { old.Close() }) //nolint:errcheck // a memfd: closing frees it, nothing is written
	fail.At(fail.KeeperRemapped)
	return 0
}
