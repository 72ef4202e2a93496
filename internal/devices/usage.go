package devices

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vacate/internal/ipc"
	"vacate/internal/sys"
)

// A host is where the kernel shows itself: folders, which tests have of their own.
type host struct {
	dev, sys, proc string
	claim          func(node string) error // sys.Claimable
}

var realHost = host{dev: "/dev", sys: "/sys", proc: "/proc", claim: sys.Claimable}

// usage is nil if nobody uses the block device of that name (ublkb0), and otherwise a
// CodeBusy that names who does: mounts, swap, drivers on top of it, programs that have
// it open; partitions count. With asleep, nobody serves it, and it is not opened.
//
// What other mount namespaces have mounted, the last test finds, without its name.
func (h host) usage(name string, asleep bool) error {
	names, numbers, err := h.parts(name)
	if err != nil {
		return err
	}
	node := filepath.Join(h.dev, name)
	mounts, err := os.ReadFile(filepath.Join(h.proc, "self/mountinfo"))
	if err != nil {
		return err
	}
	if at := mountedAt(mounts, numbers); len(at) > 0 {
		return refuse(ipc.CodeBusy, "%s is mounted at %s: unmount it first (umount %s)", node, strings.Join(at, " and "), shell(at[0]))
	}
	swaps, err := os.ReadFile(filepath.Join(h.proc, "swaps"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, n := range names {
		part := filepath.Join(h.dev, n)
		if swapsOn(swaps, part) {
			return refuse(ipc.CodeBusy, "%s is swap: take it out of use first (swapoff %s)", part, part)
		}
		holders, err := os.ReadDir(filepath.Join(h.sys, "class/block", n, "holders"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(holders) > 0 {
			return refuse(ipc.CodeBusy, "%s is held by %s: remove that first", part, filepath.Join(h.dev, holders[0].Name()))
		}
	}
	if who := h.opener(numbers); who != "" {
		return refuse(ipc.CodeBusy, "%s is open in %s: end it first", node, who)
	}
	if asleep {
		return nil
	}
	for _, n := range names {
		if err := h.claim(filepath.Join(h.dev, n)); errors.Is(err, syscall.EBUSY) {
			return refuse(ipc.CodeBusy, "%s is in use, perhaps mounted in a container: unmount it there first (grep %s /proc/*/mountinfo finds it)", filepath.Join(h.dev, n), n)
		}
	}
	return nil
}

// parts is a block device and its partitions: their names and numbers.
func (h host) parts(name string) (names []string, numbers []sys.Number, err error) {
	dir := filepath.Join(h.sys, "class/block", name)
	names = []string{name}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return names, nil, nil // the kernel has no such disk: nobody uses it
	}
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), "partition")); err == nil {
			names = append(names, e.Name())
		}
	}
	for i, n := range names {
		at := filepath.Join(dir, "dev")
		if i > 0 {
			at = filepath.Join(dir, n, "dev")
		}
		b, err := os.ReadFile(at)
		if err != nil {
			return nil, nil, err
		}
		number, err := parseNumber(string(bytes.TrimSpace(b)))
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", at, err)
		}
		numbers = append(numbers, number)
	}
	return names, numbers, nil
}

// parseNumber reads "259:3".
func parseNumber(s string) (n sys.Number, err error) {
	if _, err := fmt.Sscanf(s, "%d:%d", &n.Major, &n.Minor); err != nil || n.String() != s {
		return n, fmt.Errorf("%q is not the number of a device", s)
	}
	return n, nil
}

// mountedAt finds where devices are mounted (proc_pid_mountinfo(5): the third field is
// the device's number, the fifth the mount point, with \040 for a blank). Lines that
// are none are passed over.
func mountedAt(mountinfo []byte, devices []sys.Number) (at []string) {
	for line := range strings.Lines(string(mountinfo)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if n, err := parseNumber(f[2]); err == nil && slices.Contains(devices, n) && !slices.Contains(at, unescape(f[4])) {
			at = append(at, unescape(f[4]))
		}
	}
	return at
}

// unescape undoes mangle_path of the kernel: \ and three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// octal reports whether s is three octal digits of a byte.
func octal(s string) bool {
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7'
}

// shell is a path as a shell takes it.
func shell(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// swapsOn reports whether a node is swap (proc_swaps(5)).
func swapsOn(swaps []byte, node string) bool {
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 && unescape(f[0]) == node {
			return true
		}
	}
	return false
}

// opener names a process that has one of the devices open, as far as /proc shows
// them; "" if none.
func (h host) opener(devices []sys.Number) string {
	fds, err := filepath.Glob(filepath.Join(h.proc, "[0-9]*/fd/[0-9]*"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		// Most are sockets and files: their names tell without following them.
		if target, err := os.Readlink(fd); err != nil || !strings.HasPrefix(target, "/") {
			continue
		}
		for _, n := range devices {
			if sys.OpensBlock(fd, n) {
				pid := filepath.Base(filepath.Dir(filepath.Dir(fd)))
				comm, err := os.ReadFile(filepath.Join(h.proc, pid, "comm"))
				if err != nil {
					return "process " + pid
				}
				return fmt.Sprintf("process %s (%s)", pid, bytes.TrimSpace(comm))
			}
		}
	}
	return ""
}

// sizeOf is the size in bytes of a block device, as the kernel has it: 0 if it has none.
func (h host) sizeOf(name string) int64 {
	b, err := os.ReadFile(filepath.Join(h.sys, "class/block", name, "size"))
	if err != nil {
		return 0
	}
	var sectors int64
	if _, err := fmt.Sscan(string(b), &sectors); err != nil {
		return 0
	}
	return sectors * 512
}
