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
	exe, err := os.Executable() // without the mark of a file that was replaced
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var from, to uintptr // of the program's mapping that these lines are about; else 0
	for line := range strings.Lines(string(maps)) {
		// proc_pid_smaps(5): address perms offset dev inode pathname, as in maps;
		// then lines "Name: value".
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"):
			from = 0
			if len(f) < 6 || f[5] != exe || strings.Contains(f[1], "w") {
				continue
			}
			if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
				return fmt.Errorf("reading /proc/self/smaps: %q: %w", f[0], err)
			}
		case from != 0 && len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0":
			// Clean pages of a file: nothing is lost with them (madvise(2)). What a
			// dynamic loader has filled in, and then made read-only, is not clean.
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
				return os.NewSyscallError("madvise MADV_DONTNEED", errno)
			}
		}
	}
	return nil
}
