package drive

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vacate/internal/sys"
	"vacate/internal/uring"
)

// A host answers questions about this machine's devices from /sys and /proc, or
// from a copy of them under root.
type host struct {
	root string // "" for the real one
	stat func(path string) (sys.FileStat, error)
	ring func() error         // why there is no io_uring; nil: ask the kernel
	gone func(fds []int) bool // whether a file of sysfs was taken away; nil: ask the kernel
}

var thisHost = host{stat: sys.Stat}

// probeRing returns nil if there is io_uring.
func (h host) probeRing() error {
	if h.ring != nil {
		return h.ring()
	}
	return uring.Probe()
}

// vanished reports whether a file of sysfs that one of fds was opened from is gone.
func (h host) vanished(fds []int) bool {
	if h.gone != nil {
		return h.gone(fds)
	}
	return sys.Vanished(fds)
}

func (h host) path(elem ...string) string { return h.root + "/" + filepath.Join(elem...) }

// attr returns the contents of a file, "" if there is none.
func attr(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func exists(elem ...string) bool {
	_, err := os.Stat(filepath.Join(elem...))
	return err == nil
}

// blockDir returns a block device's folder in sysfs, "" if it has none.
func (h host) blockDir(major, minor uint32) string {
	link := h.path("sys/dev/block", strconv.FormatUint(uint64(major), 10)+":"+strconv.FormatUint(uint64(minor), 10))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	return dir
}

// diskDir is the folder of the whole disk that a partition belongs to.
func diskDir(dir string) string {
	if exists(dir, "partition") {
		return filepath.Dir(dir)
	}
	return dir
}

// kindOf names what a folder of sysfs describes.
func kindOf(dir string) string {
	switch {
	case exists(dir, "partition"):
		return "partition"
	case strings.HasPrefix(attr(dir, "dm/uuid"), "LVM-"):
		return "logical volume"
	case exists(dir, "dm"):
		return "device-mapper"
	case exists(dir, "md"):
		return "MD RAID"
	case strings.HasPrefix(filepath.Base(dir), "loop"):
		return "loop"
	}
	return "block device"
}

// identity returns what is printed on the drive, as far as the kernel knows it.
// Without a serial number the world-wide name is one.
func identity(dir string) (model, serial string) {
	disk := diskDir(dir)
	model = strings.Join(strings.Fields(attr(disk, "device/vendor")+" "+attr(disk, "device/model")), " ")
	if strings.HasPrefix(model, "0x") { // a PCI vendor's number says nothing
		model = attr(disk, "device/model")
	}
	for _, name := range []string{"serial", "device/serial", "device/vpd_pg80", "wwid", "device/wwid"} {
		serial = attr(disk, name)
		if name == "device/vpd_pg80" && len(serial) >= 4 {
			serial = serial[4:] // SPC-5, 7.7.11: four bytes of header
		}
		if serial = printable(serial); serial != "" {
			break
		}
	}
	return model, serial
}

// printable drops what must not reach a terminal, and blanks at the ends.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s))
}

// partitions returns the folders of a disk's partitions.
func partitions(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var parts []string
	for _, e := range entries {
		if p := filepath.Join(dir, e.Name()); e.IsDir() && exists(p, "partition") {
			parts = append(parts, p)
		}
	}
	return parts
}

// holders names the devices that are built on a device or its partitions.
func holders(dir string) []string {
	var names []string
	for _, d := range append([]string{dir}, partitions(dir)...) {
		entries, err := os.ReadDir(filepath.Join(d, "holders"))
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if nice := attr(filepath.Join(d, "holders", name), "dm/name"); nice != "" {
				name += " (" + nice + ")"
			}
			names = append(names, name)
		}
	}
	return names
}

// numbers returns "major:minor" of a device, of its partitions, and of the disk
// that it is a partition of: who mounts one of them uses this one too.
func numbers(dir string) []string {
	all := append([]string{dir}, partitions(dir)...)
	if disk := diskDir(dir); disk != dir {
		all = append(all, disk)
	}
	var ns []string
	for _, d := range all {
		if n := attr(d, "dev"); n != "" {
			ns = append(ns, n)
		}
	}
	return ns
}

// mounts returns where devices with these numbers are mounted
// (/proc/self/mountinfo, proc_pid_mountinfo(5)).
func (h host) mounts(devs []string) []string {
	f, err := os.Open(h.path("proc/self/mountinfo"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var points []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		sep := slices.Index(fields, "-")
		if len(fields) < 5 || sep < 0 || sep+2 >= len(fields) {
			continue
		}
		// Btrfs, for one, mounts under a number of its own: its source tells.
		if slices.Contains(devs, fields[2]) || slices.Contains(devs, h.number(unescape(fields[sep+2]))) {
			points = append(points, unescape(fields[4]))
		}
	}
	return points
}

// number returns "major:minor" of a block device's path, "" for all else.
func (h host) number(path string) string {
	if !strings.HasPrefix(path, "/") {
		return ""
	}
	st, err := h.stat(path)
	if err != nil || st.Type != sys.BlockDevice {
		return ""
	}
	return strconv.FormatUint(uint64(st.Major), 10) + ":" + strconv.FormatUint(uint64(st.Minor), 10)
}

// unescape undoes the octal escapes of /proc: \040 is a blank.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// isSwap reports whether the kernel swaps to what st describes, or, for a
// device, to one with one of these numbers.
func (h host) isSwap(st sys.FileStat, devs []string) bool {
	b, err := os.ReadFile(h.path("proc/swaps"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !strings.HasPrefix(fields[0], "/") {
			continue
		}
		s, err := h.stat(unescape(fields[0]))
		if err != nil {
			continue
		}
		if s.Dev == st.Dev && s.Inode == st.Inode || slices.Contains(devs, h.number(unescape(fields[0]))) {
			return true
		}
	}
	return false
}

// loopsOn names the loop devices that a file backs.
func (h host) loopsOn(st sys.FileStat) []string {
	backings, err := filepath.Glob(h.path("sys/block/loop*/loop/backing_file"))
	if err != nil {
		return nil
	}
	var loops []string
	for _, f := range backings {
		if s, err := h.stat(attr(filepath.Dir(f), filepath.Base(f))); err == nil && s.Dev == st.Dev && s.Inode == st.Inode {
			loops = append(loops, filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return loops
}
