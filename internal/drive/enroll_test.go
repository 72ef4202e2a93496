package drive

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/sys"
)

var (
	nodeA = ID{0xaa, 1}
	nodeB = ID{0xbb, 2}
	uuid1 = ID{0x11, 3}
	uuid2 = ID{0x22, 4}
)

// codes are those of the findings that refuse.
func codes(fs []Finding) []string {
	var cs []string
	for _, f := range fs {
		if f.Refuse {
			cs = append(cs, f.Code)
		}
	}
	return cs
}

// refused checks that err lists exactly these codes.
func refused(t *testing.T, err error, want ...string) *RefusedError {
	t.Helper()
	var e *RefusedError
	if !errors.As(err, &e) || !errors.Is(err, ErrRefused) {
		t.Fatalf("%v, want a refusal with %q", err, want)
	}
	if got := codes(e.Findings); !slices.Equal(got, want) {
		t.Fatalf("refused for %q, want %q: %v", got, want, err)
	}
	for _, f := range e.Findings {
		if !strings.Contains(err.Error(), f.Text) || !strings.Contains(f.Text, e.Path) {
			t.Errorf("the error does not say %q, or that does not name the object", f.Text)
		}
	}
	return e
}

func TestEnrollBlank(t *testing.T) {
	path := sparse(t, "drive.img", 64<<20+777)
	ins, err := Inspect(path)
	if err != nil || len(codes(ins.Findings)) != 0 || ins.Confirm != path || ins.Info.Kind != "file" || ins.Info.Size != 64<<20+777 {
		t.Fatalf("Inspect = %+v, %v", ins, err)
	}
	info, err := Enroll(path, EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 7})
	if err != nil {
		t.Fatal(err)
	}
	if info.UUID != uuid1 || info.Node != nodeA || info.Epoch != 7 || info.ExtentSize != 1<<20 || info.Extents != 62 || info.DataOffset != 1<<20 || (info.Engine == EngineRing) != info.Direct {
		t.Errorf("Enroll = %+v", info)
	}
	ins, err = Inspect(path)
	if err != nil || !slices.Equal(codes(ins.Findings), []string{CodeEnrolled}) || ins.Info.UUID != uuid1 || ins.Info.Epoch != 7 {
		t.Errorf("Inspect of an enrolled drive = %+v, %v", ins, err)
	}
	// Either copy alone is an enrolment.
	for _, off := range []int64{0, offsetOf(copyB, ins.Info.Size)} {
		saved := patch(t, path, off, make([]byte, superblockSize))
		if ins, err := Inspect(path); err != nil || !slices.Contains(codes(ins.Findings), CodeEnrolled) {
			t.Errorf("with the copy at %d wiped: %+v, %v", off, ins.Findings, err)
		}
		patch(t, path, off, saved)
	}
}

// patch overwrites part of a file and returns what was there.
func patch(t *testing.T, path string, off int64, b []byte) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := make([]byte, len(b))
	if _, err := f.ReadAt(old, off); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	return old
}

// TestEnrollForce: what a person must type, and that a refusal changes nothing.
func TestEnrollForce(t *testing.T) {
	path := golden(t, "ext4")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o := EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 1}
	for _, tt := range []struct {
		force   bool
		confirm string
	}{{false, ""}, {false, path}, {true, ""}, {true, path + "x"}, {true, filepath.Base(path)}} {
		o.Force, o.Confirm = tt.force, tt.confirm
		_, err := Enroll(path, o)
		e := refused(t, err, CodeSignature)
		if (e.Hint != "") != tt.force {
			t.Errorf("force %v, confirm %q: hint %q", tt.force, tt.confirm, e.Hint)
		}
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, before) {
		t.Fatal("a refusal changed the drive")
	}
	// The hint is the way: what the finding asks to be typed works.
	o.Force, o.Confirm = true, path
	if _, err := Enroll(path, o); err != nil {
		t.Fatal(err)
	}
	ins, err := Inspect(path)
	if err != nil || !slices.Equal(codes(ins.Findings), []string{CodeEnrolled}) {
		t.Errorf("after the forced enrolment: %+v, %v", ins.Findings, err)
	}
	checkWiped(t, path)
}

// checkWiped: nothing but the superblocks is left in the first and last MiB.
func checkWiped(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := offsetOf(copyB, int64(len(b)))
	for _, part := range [][]byte{b[superblockSize:margin], b[end-margin+superblockSize : end], b[end+superblockSize:]} {
		if i := bytes.IndexFunc(part, func(r rune) bool { return r != 0 }); i >= 0 {
			t.Errorf("a byte of the wiped area is %#x", part[i])
		}
	}
}

func TestEnrollTwice(t *testing.T) {
	path := sparse(t, "drive.img", 32<<20)
	first := EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 3}
	for range 2 { // an interrupted enrolment is repeated
		if _, err := Enroll(path, first); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		o     EnrollOptions
		force bool // may be forced
	}{
		{"same node, another id", EnrollOptions{Node: nodeA, UUID: uuid2, Epoch: 3}, false},
		{"same node, another epoch", EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 4}, false},
		{"another node", EnrollOptions{Node: nodeB, UUID: uuid2, Epoch: 1}, true},
	} {
		_, err := Enroll(path, tt.o)
		refused(t, err, CodeEnrolled)
		tt.o.Force, tt.o.Confirm = true, path
		_, err = Enroll(path, tt.o)
		if !tt.force {
			refused(t, err, CodeEnrolled)
		} else if err != nil {
			t.Errorf("%s, forced: %v", tt.name, err)
		}
	}
}

// TestEnrollInUse: the fence of a running daemon is never forced.
func TestEnrollInUse(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	d := open(t, path)
	o := EnrollOptions{Node: nodeB, UUID: uuid2, Force: true, Confirm: path}
	_, err := Enroll(path, o)
	e := refused(t, err, CodeInUse)
	if !strings.Contains(e.Findings[0].Text, "process") {
		t.Errorf("who holds it is not named: %s", e.Findings[0].Text)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Enroll(path, o); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestEnrollRefuses(t *testing.T) {
	small := sparse(t, "small.img", minSize-1)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{small: CodeTooSmall, dir: CodeNotSupported, "/dev/null": CodeNotSupported, fifo: CodeNotSupported} {
		_, err := Enroll(path, EnrollOptions{Node: nodeA, UUID: uuid1, Force: true, Confirm: path})
		refused(t, err, want)
	}
	// Everything at once.
	b := make([]byte, 1<<20)
	copy(b[3:], "NTFS    ")
	copy(b[512:], "EFI PART")
	all := filepath.Join(dir, "all.img")
	if err := os.WriteFile(all, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Enroll(all, EnrollOptions{Node: nodeA, UUID: uuid1})
	refused(t, err, CodeTooSmall, CodeSignature, CodePartitionTable)
	_, err = Enroll(all, EnrollOptions{Node: nodeA, UUID: uuid1, Force: true, Confirm: all})
	refused(t, err, CodeTooSmall)

	if _, err := Enroll(filepath.Join(dir, "missing"), EnrollOptions{Node: nodeA, UUID: uuid1}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that does not exist: %v", err)
	}
	if _, err := Enroll(small, EnrollOptions{UUID: uuid1}); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("no node: %v", err)
	}
}

// TestEnrollRecordLock: a virtual machine's disk image is in use.
func TestEnrollRecordLock(t *testing.T) {
	path := sparse(t, "vm.img", 32<<20)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const ofdSetlk = 37 // F_OFD_SETLK; QEMU locks single bytes from 100 on
	lk := syscall.Flock_t{Type: syscall.F_RDLCK, Start: 100, Len: 1}
	if err := syscall.FcntlFlock(f.Fd(), ofdSetlk, &lk); err != nil {
		t.Fatal(err)
	}
	_, err = Enroll(path, EnrollOptions{Node: nodeA, UUID: uuid1, Force: true, Confirm: path})
	refused(t, err, CodeHeld)
}

// TestShape: properties that files do not have.
func TestShape(t *testing.T) {
	for _, tt := range []struct {
		t    target
		want []string
	}{
		{target{size: 1 << 30, logical: 512}, nil},
		{target{size: 1 << 30, logical: 4096}, nil},
		{target{size: 1 << 30, logical: 8192}, []string{CodeLogicalBlock}},
		{target{size: 1 << 30, logical: 512, readOnly: true}, []string{CodeNotSupported}},
		{target{size: 1 << 62, logical: 512}, []string{CodeNotSupported}},
		{target{size: 1 << 20, logical: 16384, readOnly: true}, []string{CodeNotSupported, CodeTooSmall, CodeLogicalBlock}},
	} {
		f := findings{t: &tt.t}
		f.shape()
		if got := codes(f.all); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.t, got, tt.want)
		}
		for _, x := range f.all {
			if x.Force {
				t.Errorf("%q may be forced", x.Text)
			}
		}
	}
}

// TestUnreadable: a drive that cannot be read is not taken for a blank one.
func TestUnreadable(t *testing.T) {
	path := sparse(t, "drive.img", 32<<20)
	tg, err := thisHost.open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = sys.CloseFD(tg.fd)
	if tg.fd, err = sys.OpenStorage("/proc/self/mem", 0); err != nil { // reads of address 0 fail
		t.Fatal(err)
	}
	defer tg.close()
	f := findings{t: tg, confirm: path}
	f.contents()
	if got := codes(f.all); !slices.Equal(got, []string{CodeNotSupported}) || f.all[0].Force || !strings.Contains(f.all[0].Text, "input/output error") {
		t.Errorf("findings %+v", f.all)
	}
}

func TestConfirmation(t *testing.T) {
	for _, tt := range []struct {
		t    target
		want string
	}{
		{target{path: "/dev/sdb", kind: "block device", serial: "S1"}, "S1"},
		{target{path: "/dev/sdb1", kind: "partition", serial: "S1"}, "/dev/sdb1"},
		{target{path: "/dev/vg/lv", kind: "logical volume"}, "/dev/vg/lv"},
	} {
		if got := tt.t.confirmation(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.t.path, got, tt.want)
		}
	}
}
