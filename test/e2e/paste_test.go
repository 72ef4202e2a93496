package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// bootSector reads the sector after it from the disk that it was started from,
// prints it up to the first zero on port 0xE9, writes it to the sector after that,
// and prints "!". When the disk fails, it halts without a word.
var bootSector = []byte{
	0x31, 0xC0, // xor ax, ax
	0x8E, 0xD8, // mov ds, ax
	0x8E, 0xC0, // mov es, ax
	0xB8, 0x01, 0x02, // mov ax, 0x0201: read one sector
	0xB9, 0x02, 0x00, // mov cx, 2: the second
	0xB6, 0x00, // mov dh, 0
	0xBB, 0x00, 0x7E, // mov bx, 0x7E00
	0xCD, 0x13, // int 0x13
	0x72, 0x1D, // jc halt
	0xBE, 0x00, 0x7E, // mov si, 0x7E00
	0xAC,       // lodsb
	0x84, 0xC0, // test al, al
	0x74, 0x04, // jz written
	0xE6, 0xE9, // out 0xE9, al
	0xEB, 0xF7, // jmp lodsb
	0xB8, 0x01, 0x03, // mov ax, 0x0301: write one sector
	0xB9, 0x03, 0x00, // mov cx, 3: the third
	0xBB, 0x00, 0x7E, // mov bx, 0x7E00
	0xCD, 0x13, // int 0x13
	0x72, 0x04, // jc halt
	0xB0, 0x21, // mov al, '!'
	0xE6, 0xE9, // out 0xE9, al
	0xF4,       // halt: hlt
	0xEB, 0xFD, // jmp halt
}

// TestPastedQEMU: what is printed for QEMU starts a machine, as it is. It boots
// from the lease's volume, which was written over NBD, and what it writes is read
// over NBD.
func TestPastedQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatalf("%v: install it with `apt-get install qemu-system-x86`, or run `make test`, which does", err)
	}
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB", "--export", "nbd,vhost-user", "--queues", "2")
	sectors := make([]byte, 3*512)
	copy(sectors, bootSector)
	sectors[510], sectors[511] = 0x55, 0xAA
	const word = "read by the machine"
	copy(sectors[512:], word)
	c, err := nbdclient.Dial(l.URI(), nbdclient.Options{NoBlockSize: true})
	must(t, err)
	defer c.Close() //nolint:errcheck // all was read
	_, err = c.WriteAt(sectors, 0)
	must(t, err)

	text, err := d.Run("lease", "show", l.ID, "--print-config", "qemu")
	must(t, err)
	console := filepath.Join(t.TempDir(), "console")
	cmd := exec.Command("sh", "-c", "exec "+withoutComments(text)+" -nodefaults -display none -debugcon file:"+console)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	defer cmd.Wait()         //nolint:errcheck // killed
	defer cmd.Process.Kill() //nolint:errcheck // it has ended, then
	want := []byte(word + "!")
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got, err := os.ReadFile(console)
		if err == nil && bytes.Contains(got, want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the machine printed %q (%v), want %q; QEMU said: %s", got, err, want, said.String())
		}
	}
	var shown struct {
		Stats struct{ Connections, Queues int }
	}
	must(t, d.JSON(&shown, "lease", "show", l.ID))
	if shown.Stats.Connections != 2 || shown.Stats.Queues < 1 {
		t.Errorf("the lease says %+v, with a machine and an NBD client connected", shown.Stats)
	}
	got := make([]byte, 512)
	_, err = c.ReadAt(got, 1024)
	must(t, err)
	if !slices.Equal(got, sectors[512:1024]) {
		t.Errorf("the machine wrote %q", got)
	}
}

// withoutComments is a text for a shell without the lines that explain it, and
// without the end of its last line.
func withoutComments(text string) string {
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(s string) bool { return strings.HasPrefix(s, "#") })
	return strings.TrimSpace(strings.Join(lines, "\n"))
}
