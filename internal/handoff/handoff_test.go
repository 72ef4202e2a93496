package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/sys"
)

// vectors are the files on the page: of an upgrade, and of a check.
func vectors(t testing.TB) [][]byte {
	t.Helper()
	page, err := os.ReadFile("../../docs/spec/handoff.md")
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, m := range regexp.MustCompile("(?s)```json\n(.*?)\n```").FindAllSubmatch(page, -1) {
		out = append(out, m[1])
	}
	if len(out) != 2 {
		t.Fatalf("%d vectors on the page, want 2", len(out))
	}
	return out
}

func spec() Note {
	return Note{
		Version: 1, Place: "/run/vacate, /var/lib/vacate", Keys: At(3), Table: At(4), API: At(5), Admin: At(6), Alive: At(7), Lock: At(8),
		Program: At(9), Old: At(10), Settings: []byte(`{"maxConns":128}`), Outcome: "done", Engine: Child{4711, At(11), At(12)}, Control: Child{4712, At(13), At(14)},
		Slots: []Slot{{5, At(15), At(16), []Conn{{At(17), 1}, {At(18), 1<<64 - 1}}, map[int]*File{0: new(At(19)), 255: new(At(20))}}},
	}
}

// TestSpecVectors holds code and page together.
func TestSpecVectors(t *testing.T) {
	for i, want := range []Note{spec(), {Version: 1, Place: "/run/vacate, /var/lib/vacate", Keys: At(4), Table: At(5)}} {
		b := vectors(t)[i]
		var got Note
		if err := got.decode(b, i == 1); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read: %v\n got %+v\nwant %+v", err, got, want)
		}
		f, err := want.Write()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, b) {
			t.Errorf("written: %v\n got %s\nwant %s", err, got, b)
		}
	}
}

// TestRefused: what a reader does not know, or cannot be.
func TestRefused(t *testing.T) {
	good := string(vectors(t)[0])
	for _, tt := range []struct{ old, new, want string }{
		{`"version":1`, `"version":2`, "version 2, this program knows 1"},
		{`"version":1,`, ``, "version 0"},
		{`"place"`, `"plaice"`, "unknown field"},
		{`"pid":4711,`, `"pid":4711,"colour":3,`, "unknown field"},
		{`"pid":4711`, `"pid":0`, "a child without a process"},
		{`"keys":3`, `"keys":2`, "descriptor 2"},
		{`"keys":3`, `"keys":18`, "descriptor 18 is named twice"},
		{`"keys":3,`, ``, "descriptor 0"},
		{`"map":15`, `"map":0`, "descriptor 0"},
		{`"map":15`, `"map":-4`, "descriptor -4"},
		{`"map":15`, `"map":"15"`, "cannot unmarshal"},
		{`"slot":5`, `"slot":-1`, "slot -1"},
		{`"slots":[`, `"slots":[{"slot":5,"map":90},`, "slot 5 does not follow"},
		{`"0":19`, `"0":null`, "descriptor 0"},
		{`"0":19`, `"0":17`, "descriptor 17 is named twice"},
		{`"0":19`, `"first":19`, "cannot unmarshal"},
		{`}}]}`, `}}]}{}`, "after top-level value"},
		{good, ``, "unexpected end"},
	} {
		b := strings.Replace(good, tt.old, tt.new, 1)
		if b == good {
			t.Fatalf("%q is not in the vector", tt.old)
		}
		if err := new(Note).decode([]byte(b), false); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s → %s: %v, want %q", tt.old, tt.new, err, tt.want)
		}
	}
}

func TestStrict(t *testing.T) {
	var v struct{ A int }
	if err := Strict([]byte(` {"a":1} `), &v); err != nil || v.A != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range []string{`{"a":1}{}`, `{"b":1}`, ``, `[`} {
		if err := Strict([]byte(bad), &v); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestInherited reads a hand-off as a check does, and sees that nothing of it is
// left for children.
func TestInherited(t *testing.T) {
	if h, err := Inherited(); h != nil || err != nil {
		t.Fatalf("without a hand-off: %v, %v", h, err)
	}
	keys, table := memfd(t), memfd(t)
	f, err := (&Note{Place: "here", Keys: Of(keys), Table: Of(table)}).Write()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = syscall.Dup(fd); err != nil { // as an exec leaves it
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	for _, v := range Check(fd) {
		name, value, _ := strings.Cut(v, "=")
		if name == "NOTIFY_SOCKET" {
			t.Error("a check would speak to the service manager")
		}
		if strings.HasPrefix(name, "VACATE_HANDOFF") {
			t.Setenv(name, value)
		}
	}
	h, err := Inherited()
	if err != nil || !h.Checking || h.Failed != "" || h.Place != "here" {
		t.Fatalf("%+v, %v", h, err)
	}
	if got, _ := sys.Descriptor(h.Keys.File); got == 0 {
		t.Error("the keys are not open")
	}
	if os.Getenv(fileEnv)+os.Getenv(checkEnv) != "" {
		t.Error("the variables are still there")
	}
	reason := errors.New("no")
	if err := h.Return(reason); err != reason {
		t.Errorf("a check returns %v", err)
	}
	if err := (*Handoff)(nil).Return(reason); err != reason {
		t.Errorf("without a hand-off: %v", err)
	}

	for _, bad := range []string{"x", "1000000"} {
		t.Setenv(fileEnv, bad)
		if h, err := Inherited(); err == nil {
			t.Errorf("descriptor %q: %+v", bad, h)
		}
	}
	// A file that names what is not open.
	f, err = (&Note{Keys: At(1000000), Table: At(1000001)}).Write()
	if err != nil {
		t.Fatal(err)
	}
	fd, _ = sys.Descriptor(f)
	fd, _ = syscall.Dup(fd)
	t.Setenv(fileEnv, strconv.Itoa(fd))
	t.Setenv(checkEnv, "1")
	if h, err := Inherited(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("%+v, %v, want EBADF", h, err)
	}
}

func memfd(t *testing.T) *os.File {
	t.Helper()
	f, err := sys.Memfd("test", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestExecRefuses: nothing has changed when the next program cannot be run.
func TestExecRefuses(t *testing.T) {
	text := t.TempDir() + "/text"
	if err := os.WriteFile(text, []byte("not a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := sys.OpenProgram(text)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	n := spec()
	for _, f := range n.files(false) {
		*f = Of(memfd(t))
	}
	if err := n.Exec(p, []string{text}, nil); !errors.Is(err, syscall.ENOEXEC) {
		t.Errorf("running a text: %v", err)
	}
	for _, f := range n.files(false) {
		fd, err := sys.Descriptor(f.File)
		if err != nil {
			t.Fatal(err)
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d would be left to children: flags %d, %v", fd, flags, errno)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v, false)
		f.Add(v, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, check bool) {
		var n Note
		if n.decode(b, check) != nil {
			return
		}
		again, err := json.Marshal(&n)
		if err != nil {
			t.Fatal(err)
		}
		var m Note
		if err := m.decode(again, check); err != nil {
			t.Fatalf("%s\nis not read again: %v", again, err)
		}
		if third, err := json.Marshal(&m); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%s\nis read as\n%s, %v", again, third, err)
		}
	})
}
