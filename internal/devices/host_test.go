package devices

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/sys"
)

// tree writes files beneath a new folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// with returns m and what is over it.
func over(m map[string]string, more map[string]string) map[string]string {
	all := maps.Clone(m)
	maps.Copy(all, more)
	return all
}

func TestUsage(t *testing.T) {
	idle := map[string]string{
		"sys/class/block/ublkb0/dev":                "259:3\n",
		"sys/class/block/ublkb0/holders/.keep":      "",
		"sys/class/block/ublkb0/ublkb0p1/dev":       "259:4\n",
		"sys/class/block/ublkb0/ublkb0p1/partition": "1\n",
		"sys/class/block/ublkb0/queue/rotational":   "0\n",
		"proc/self/mountinfo":                       "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 259:33 / /other rw - ext4 /dev/x rw\nnonsense\n",
		"proc/swaps":                                "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n",
		"proc/17/comm":                              "qemu\n",
	}
	mounted := func(line string) map[string]string { return map[string]string{"proc/self/mountinfo": line} }
	for _, tt := range []struct {
		what  string
		files map[string]string
		claim error
		want  []string // parts of the refusal; nil: it is not in use
	}{
		{what: "idle"},
		{what: "mounted", files: mounted("30 1 259:3 / /mnt/x rw,relatime shared:1 - ext4 /dev/ublkb0 rw\n"), want: []string{"is mounted at /mnt/x: unmount it first (umount /mnt/x)"}},
		{what: "twice", files: mounted("30 1 259:3 / /mnt/x rw\n31 1 259:3 /sub /mnt/y rw\n32 1 259:3 / /mnt/x rw\n"), want: []string{"/mnt/x and /mnt/y"}},
		{what: "a partition", files: mounted("30 1 259:4 / /mnt/p rw\n"), want: []string{"/mnt/p"}},
		{what: "a blank", files: mounted(`30 1 259:3 / /mnt/my\040disk rw` + "\n"), want: []string{"at /mnt/my disk", "umount '/mnt/my disk'"}},
		{what: "swap", files: map[string]string{"proc/swaps": "Filename Type\nDEV/ublkb0 partition\n"}, want: []string{"swapoff", "ublkb0"}},
		{what: "no swap in this kernel", files: map[string]string{"proc/swaps": ""}},
		{what: "claimed", claim: syscall.EBUSY, want: []string{"in use"}},
		{what: "other error", claim: syscall.ENXIO},
	} {
		t.Run(tt.what, func(t *testing.T) {
			dir := tree(t, over(idle, tt.files))
			if err := os.Remove(filepath.Join(dir, "sys/class/block/ublkb0/holders/.keep")); err != nil {
				t.Fatal(err)
			}
			h := host{dev: dir + "/dev", sys: dir + "/sys", proc: dir + "/proc", claim: func(string) error {
				if tt.claim != nil {
					return &os.PathError{Op: "open", Path: "x", Err: tt.claim}
				}
				return nil
			}}
			swaps := filepath.Join(dir, "proc/swaps")
			b, err := os.ReadFile(swaps)
			if err == nil {
				err = os.WriteFile(swaps, []byte(strings.ReplaceAll(string(b), "DEV", h.dev)), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			err = h.usage("ublkb0", false)
			if tt.want == nil {
				if err != nil {
					t.Errorf("in use: %v", err)
				}
				return
			}
			code(t, err, ipc.CodeBusy, tt.want...)
			if err := h.usage("ublkb0", true); tt.claim != nil && err != nil {
				t.Errorf("a device that nobody serves is opened: %v", err)
			}
		})
	}
	t.Run("held", func(t *testing.T) {
		dir := tree(t, over(idle, map[string]string{"sys/class/block/ublkb0p1/holders/dm-0": ""}))
		if err := os.Remove(filepath.Join(dir, "sys/class/block/ublkb0/holders/.keep")); err != nil {
			t.Fatal(err)
		}
		h := host{dev: "/dev", sys: dir + "/sys", proc: dir + "/proc"}
		code(t, h.usage("ublkb0", true), ipc.CodeBusy, "/dev/ublkb0p1 is held by /dev/")
	})
	t.Run("no disk", func(t *testing.T) {
		h := host{dev: "/dev", sys: t.TempDir(), proc: tree(t, map[string]string{"self/mountinfo": ""}), claim: func(string) error { return os.ErrNotExist }}
		if err := h.usage("ublkb0", false); err != nil {
			t.Error(err)
		}
	})
}

// TestOpener: a program that has a block device open is named, and nothing else that
// it has open is taken for one.
func TestOpener(t *testing.T) {
	dir := tree(t, map[string]string{"17/comm": "qemu\n", "17/fd/.keep": ""})
	if err := os.Symlink("/dev/null", filepath.Join(dir, "17/fd/3")); err != nil {
		t.Fatal(err)
	}
	h := host{proc: dir}
	if who := h.opener([]sys.Number{{Major: 1, Minor: 3}}); who != "" { // a character device of that number
		t.Errorf("opened by %q", who)
	}
	// Block devices that a test may open are rare: the machine's tests have one.
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`/a`: "/a", `/a\040b`: "/a b", `/a\011\012\134`: "/a\t\n\\", `\04`: `\04`, `\0401`: " 1", `\940`: `\940`, `\777`: `\777`, `\`: `\`, ``: ``,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzMounts: whatever is mounted where, the parser ends; and a mount of ours, put
// anywhere between lines, is found.
func FuzzMounts(f *testing.F) {
	f.Add("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "/mnt/x y")
	f.Add("\x00\n\\\\\\ 259:3", "/\\040")
	f.Add("", "/")
	f.Fuzz(func(t *testing.T, others, at string) {
		if strings.ContainsRune(at, 0) || at == "" {
			return
		}
		n := sys.Number{Major: 259, Minor: 3}
		mountedAt([]byte(others), []sys.Number{n})
		escaped := ""
		for _, c := range []byte(at) {
			if strings.ContainsRune(" \t\n\\", rune(c)) || c < ' ' || c >= 0x7f {
				escaped += "\\" + string([]byte{'0' + c>>6, '0' + c>>3&7, '0' + c&7})
			} else {
				escaped += string(c)
			}
		}
		got := mountedAt([]byte(strings.TrimRight(others, "\n")+"\n30 1 259:3 / "+escaped+" rw - ext4 x rw\n"), []sys.Number{n})
		if !slices.Contains(got, at) {
			t.Errorf("mounted at %q, found at %q", at, got)
		}
	})
}

func TestLinks(t *testing.T) {
	dev := t.TempDir()
	l := links{filepath.Join(dev, "vacate")}
	if all, err := l.all(); err != nil || len(all) != 0 {
		t.Errorf("no folder: %v, %v", all, err)
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// What another process has left half done does no harm.
	if err := os.Symlink("nowhere", filepath.Join(l.dir, "."+leaseA)); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"ublkb0", "ublkb0", "ublkb12", "nbd3"} {
		if err := l.set(leaseA, filepath.Join(dev, node)); err != nil {
			t.Fatal(err)
		}
		if all, err := l.all(); err != nil || !maps.Equal(all, map[string]string{leaseA: node}) {
			t.Errorf("links: %v, %v", all, err)
		}
		if at, err := os.Readlink(l.path(leaseA)); err != nil || at != "../"+node {
			t.Errorf("the link leads to %q, %v", at, err)
		}
	}
	if err := l.set(leaseA, "/elsewhere/ublkb1"); err != nil {
		t.Fatal(err)
	}
	if at, err := os.Readlink(l.path(leaseA)); err != nil || at != "/elsewhere/ublkb1" {
		t.Errorf("the link leads to %q, %v", at, err)
	}
	for range 2 {
		if err := l.remove(leaseA); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(l.dir); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	// What is no link of ours stays.
	if err := os.WriteFile(l.path(leaseB), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.remove(leaseB); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a file: %v", err)
	}
	if all, err := l.all(); err != nil || len(all) != 0 {
		t.Errorf("links: %v, %v", all, err)
	}
	for _, name := range []string{"../../etc/passwd", "", ".", "..", "aaaaaaaaaaaaaaa/", "AAAAAAAAAAAAAAAA"} {
		if err := errors.Join(l.set(name, "/dev/ublkb0")); err == nil {
			t.Errorf("a link %q is made", name)
		}
		if err := l.remove(name); err == nil {
			t.Errorf("a link %q is removed", name)
		}
	}
}

func TestNumbered(t *testing.T) {
	for in, want := range map[string]int{"ublkb0": 0, "ublkb17": 17, "ublkb": -1, "ublkb01": -1, "ublkb-1": -1, "ublkb1p1": -1, "nbd1": -1, "": -1, "ublkb99999999999999999999": -1} {
		n, ok := numbered(in)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("numbered(%q) = %d, %v", in, n, ok)
		}
	}
}
