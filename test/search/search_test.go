package search

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// sysMemfdCreate is memfd_create(2) of amd64 and of the others.
var sysMemfdCreate = map[bool]uintptr{true: 319, false: 279}[runtime.GOARCH == "amd64"]

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == RegistersCommand {
		if err := RegistersMain(os.Args[2]); err != nil {
			panic(err)
		}
		return
	}
	m.Run()
}

func TestIn(t *testing.T) {
	n := NewNeedles()
	hay := make([]byte, 3*window+100)
	rand.Read(hay) //nolint:errcheck // never fails
	for i, at := range []int{0, 17, window - 5, 2*window - 31, len(hay) - 40} {
		n.Add(string(rune('a'+i)), hay[at:at+40])
	}
	n.Add("absent", bytes.Repeat([]byte("x"), 32))
	path := filepath.Join(t.TempDir(), "hay")
	if err := os.WriteFile(path, hay, 0o600); err != nil {
		t.Fatal(err)
	}
	hits, searched, err := n.File(path)
	if err != nil || len(hits) != 5 || searched != uint64(len(hay)) {
		t.Errorf("found %v in %d bytes, %v; want 5 in %d", hits, searched, err, len(hay))
	}
}

// TestInZeros: what lies between zeros is found at any place, and so is a needle
// that begins with zeros.
func TestInZeros(t *testing.T) {
	n, m := NewNeedles(), NewNeedles()
	n.Add("needle", []byte("0123456789abcdef"))
	m.Add("zeros first", append(make([]byte, 12), "0123"...))
	for at := range 2100 {
		hay := make([]byte, 4096)
		copy(hay[at+12:], "0123456789abcdef")
		if hits := n.In(hay, "hay", 0); len(hits) != 1 || hits[0].At != uint64(at+12) {
			t.Fatalf("a needle at %d: found %v", at+12, hits)
		}
		if hits := m.In(hay, "hay", 0); len(hits) != 1 || hits[0].At != uint64(at) {
			t.Fatalf("a needle that begins with zeros at %d: found %v", at, hits)
		}
	}
}

// TestAddKey: one round key by itself is found, and what is in every slot is not.
func TestAddKey(t *testing.T) {
	slot := make([]byte, SlotSize)
	rand.Read(slot[:640]) //nolint:errcheck // never fails
	for at := 640; at < 800; at += 8 {
		slot[at] = byte(at) // counters
	}
	n := NewNeedles()
	n.AddKey("a key", slot)
	if n.Len() != 40 {
		t.Errorf("%d needles of a slot with 40 random quarters", n.Len())
	}
	for at := 0; at < 640; at += 16 {
		hay := make([]byte, 100)
		copy(hay[at%64+3:], slot[at:at+16])
		if hits := n.In(hay, "hay", 0); len(hits) != 1 {
			t.Errorf("16 bytes at %d of the slot: found %v", at, hits)
		}
	}
}

// TestMemfds finds what lies in a file in memory that a process holds and does not
// map, but not in one that is to be passed over.
func TestMemfds(t *testing.T) {
	fd, _, errno := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&[]byte("hidden\x00")[0])), 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	f := os.NewFile(fd, "hidden")
	defer f.Close() //nolint:errcheck // of memory
	secret := make([]byte, 64)
	rand.Read(secret) //nolint:errcheck // never fails
	if _, err := f.WriteAt(secret, 5000); err != nil {
		t.Fatal(err)
	}
	n := NewNeedles()
	n.Add("secret", secret[8:40])
	hits, searched, err := n.Memfds(os.Getpid(), func(string) bool { return false })
	if err != nil || len(hits) != 1 || hits[0].At != 5008 || searched < 5064 {
		t.Errorf("found %v in %d bytes: %v", hits, searched, err)
	}
	hits, _, err = n.Memfds(os.Getpid(), func(link string) bool { return strings.Contains(link, "hidden") })
	if err != nil || len(hits) != 0 {
		t.Errorf("found %v in a file that is passed over: %v", hits, err)
	}
}

// TestChild finds what a child holds in memory, and in a register.
func TestChild(t *testing.T) {
	if os.Getenv("SEARCH_CHILD") != "" {
		secret := bytes.Repeat([]byte("secret of child "), 4)
		os.Stdout.WriteString("ready\n")    //nolint:errcheck // the parent reads it
		_, _ = os.Stdin.Read(secret[60:61]) //nolint:errcheck // until the parent is done
		os.Stdout.Write(secret[:1])         //nolint:errcheck // keeps it alive
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$")
	cmd.Env = append(os.Environ(), "SEARCH_CHILD=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close() //nolint:errcheck // ends the child
		cmd.Wait() //nolint:errcheck // killed by its test's end
	}()
	b := make([]byte, 6)
	if _, err := out.Read(b); err != nil || !strings.HasPrefix(string(b), "ready") {
		t.Fatalf("the child says %q, %v", b, err)
	}
	n := NewNeedles()
	n.Add("secret", bytes.Repeat([]byte("secret of child "), 4)[8:40])
	r, err := n.Process(cmd.Process.Pid, func(Mapping) bool { return false })
	if err != nil || len(r.Hits) == 0 {
		t.Errorf("the secret was not found in %d bytes: %v", r.Searched, err)
	}
	if _, threads, err := n.Registers(cmd.Process.Pid); err != nil || threads == 0 {
		t.Errorf("registers of %d threads: %v", threads, err)
	}
}
