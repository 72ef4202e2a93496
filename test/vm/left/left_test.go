package left

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// host makes a host without anything left over, and processes of the daemon's with two
// descriptors each.
func host(t *testing.T) (Places, string) {
	t.Helper()
	dir := t.TempDir()
	p := Places{
		Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"),
		Leases: filepath.Join(dir, "run/leases"), Program: "/bin/vacate",
	}
	plant(t, dir, "proc/self/mountinfo", "20 1 0:20 / /proc rw - proc proc rw\n21 1 0:6 / /dev rw - devtmpfs devtmpfs rw\n22 1 254:0 / /state rw - ext4 /dev/vda rw\n")
	for pid, command := range []string{"serve\x00--state-dir\x00/state", "control", "engine", "devices"} {
		plant(t, dir, fmt.Sprintf("proc/%d/cmdline", pid+10), "/bin/vacate\x00"+command+"\x00")
		for fd := range 2 {
			open(t, dir, fmt.Sprintf("proc/%d/fd/%d", pid+10, fd), fmt.Sprintf("socket:[%d]", pid+fd))
		}
	}
	plant(t, dir, "proc/20/cmdline", "/usr/bin/fio\x00engine\x00") // another program
	open(t, dir, "proc/20/fd/0", "/dev/null")
	plant(t, dir, "dev/ublk-control", "")
	plant(t, dir, "dev/nbd0", "")
	plant(t, dir, "dev/null", "")
	plant(t, dir, "sys/block/nbd0/size", "0\n")
	plant(t, dir, "sys/block/vda/size", "65536\n")
	if err := os.MkdirAll(p.Leases, 0o755); err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func plant(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// open plants a descriptor.
func open(t *testing.T, dir, name, to string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func TestNothing(t *testing.T) {
	p, _ := host(t)
	l, err := p.Count()
	if err != nil || len(l.Things()) != 0 {
		t.Errorf("%q, %v", l.Things(), err)
	}
	two := []string{"socket", "socket"}
	want := map[string][]string{"serve": two, "control": two, "engine": two, "devices": two}
	if !maps.EqualFunc(l.Descriptors, want, slices.Equal) {
		t.Errorf("%v, want %v", l.Descriptors, want)
	}
	p.Leases = filepath.Join(p.Leases, "none")
	p.Sys, p.Dev = filepath.Join(p.Sys, "none"), filepath.Join(p.Dev, "none")
	if l, err = p.Count(); err != nil || len(l.Things()) != 0 {
		t.Errorf("without folders: %q, %v", l.Things(), err)
	}
}

// TestPlanted: whatever is left over alone is found.
func TestPlanted(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"dev/ublkc3", "", "ublk device dev/ublkc3"},
		{"sys/class/ublk-char/ublkc4/dev", "", "ublk device sys/class/ublk-char/ublkc4"},
		{"dev/ublkb3", "", "block device dev/ublkb3"},
		{"sys/block/ublkb5/size", "0", "block device sys/block/ublkb5"},
		{"sys/block/nbd7/pid", "17\n", "block device sys/block/nbd7"},
		{"sys/block/nbd8/backend", "vacate:a:b\n", "block device sys/block/nbd8"},
		{"dev/vacate/abcdefghijklmnop", "", "link dev/vacate/abcdefghijklmnop"},
		{"proc/self/mountinfo", "23 1 259:0 / /mnt/a rw,relatime - ext4 /dev/ublkb0 rw\n", "mount /dev/ublkb0 on /mnt/a"},
		{"proc/self/mountinfo", "23 1 43:0 / /mnt/a rw,relatime shared:1 - xfs /dev/nbd0p1 rw\n", "mount /dev/nbd0p1 on /mnt/a"},
		{"proc/self/mountinfo", "23 1 43:0 / /mnt/a rw - xfs /dev/vacate/x rw\n", "mount /dev/vacate/x on /mnt/a"},
		{"proc/self/mountinfo", "23 1 0:6 /ublkb0 /mnt/a rw - devtmpfs devtmpfs rw\n", "mount /dev/ublkb0 on /mnt/a"},
	}
	for _, tt := range tests {
		p, dir := host(t)
		plant(t, dir, tt.name, tt.text)
		l, err := p.Count()
		var got []string
		for _, thing := range l.Things() {
			got = append(got, strings.ReplaceAll(thing, dir+"/", ""))
		}
		if err != nil || !slices.Equal(got, []string{tt.want}) {
			t.Errorf("with %s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}

	p, dir := host(t)
	plant(t, dir, "run/leases/abc/nbd.sock", "")
	if l, err := p.Count(); err != nil || len(l.Things()) != 2 || len(l.Sockets) != 2 {
		t.Errorf("with a lease's folder and its socket: %q, %v", l.Things(), err)
	}
	p, dir = host(t)
	open(t, dir, "proc/12/fd/2", "/dev/ublkc0 (deleted)")
	if l, err := p.Count(); err != nil || !slices.Equal(l.Descriptors["engine"], []string{"/dev/ublkc0 (deleted)", "socket", "socket"}) {
		t.Errorf("with one more descriptor of the engine: %v, %v", l.Descriptors, err)
	}
}
