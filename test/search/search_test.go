package search

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

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
