package sys

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// TrimProgram gives back the pages of this program's own file that are mapped
// only for reading, its code and constants: most of them were touched by the
// start of packages that this process never uses again, or came along with their
// neighbours. What is needed is mapped anew from the page cache when it is
// touched, at less than a microsecond a page.
func TrimProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		// proc_pid_maps(5): address perms offset dev inode pathname
		f := strings.Fields(line)
		if len(f) < 6 || f[5] != exe || strings.Contains(f[1], "w") {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("reading /proc/self/maps: %q: %w", f[0], err)
		}
		// Clean pages of a file: nothing is lost with them (madvise(2)).
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise MADV_DONTNEED", errno)
		}
	}
	return nil
}
