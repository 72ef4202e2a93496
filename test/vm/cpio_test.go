package vm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := &archive{w: &b}
	a.dir("dev")
	a.device("/dev/console", 0o600, 5, 1)
	a.file("init", 0o755, []byte("#!"))
	a.file("bin/x", 0o644, bytes.Repeat([]byte("x"), 1001))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes are no multiple of 4", b.Len())
	}
	want := []string{
		"070701 00000001 000041ED 1 0 00000000 00000000 dev",
		"070701 00000002 00002180 1 0 00000005 00000001 dev/console",
		"070701 00000003 000081ED 1 2 00000000 00000000 init",
		"070701 00000004 000081A4 1 1001 00000000 00000000 bin/x",
		"070701 00000000 00000000 1 0 00000000 00000000 TRAILER!!!",
	}
	if got := list(t, b.Bytes()); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the archive holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// list reads an archive as the format's description says, with none of the
// writer's code: number, mode, links, size, device, name. (The kernel is the third
// to read it: TestMachine.)
func list(t *testing.T, b []byte) (lines []string) {
	t.Helper()
	for at := 0; at < len(b); {
		var f [13]int
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("magic %q at %d", b[at:at+6], at)
		}
		for i := range f {
			if _, err := fmt.Sscanf(string(b[at+6+8*i:at+14+8*i]), "%08X", &f[i]); err != nil {
				t.Fatalf("field %d at %d: %v", i, at, err)
			}
		}
		name := string(b[at+110 : at+110+f[11]-1])
		lines = append(lines, fmt.Sprintf("070701 %08X %08X %d %d %08X %08X %s", f[0], f[1], f[4], f[6], f[9], f[10], name))
		at += (110+f[11]+3)/4*4 + (f[6]+3)/4*4
	}
	return lines
}
