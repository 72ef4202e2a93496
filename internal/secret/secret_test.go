package secret_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"vacate/internal/secret"
)

// The test binary runs itself as the process that handles a secret, and searches it
// from outside: what is searched for must not be in the memory that is searched.
const partEnv = "SECRET_TEST_PART"

func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		handle(part)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A key is made where nobody looks: the process's own standard input, which it reads
// byte by byte, masked. mask is what is written there.
const mask = 0x5c

//go:noinline
func unmask(dst, masked []byte) {
	for i := range dst {
		dst[i] = masked[i] ^ mask
	}
}

var (
	kept  [sha256.Size]byte
	spill [64]byte
)

// handle hashes a key within Do, or as the part says, and waits to be searched.
func handle(part string) {
	masked := make([]byte, 64)
	if _, err := os.Stdin.Read(masked); err != nil {
		os.Exit(2)
	}
	work := func() {
		key := make([]byte, 64)
		unmask(key, masked)
		var deep func(n int)
		deep = func(n int) { // copies on the stack, some frames down
			var local [64]byte
			copy(local[:], key)
			if n > 0 {
				deep(n - 1)
			}
			kept[0] ^= local[n]
		}
		deep(8)
		kept = sha256.Sum256(key)
		if part == "planted" {
			spill = [64]byte(key)
		}
		if !secret.Enabled() { // nothing is said of the heap there
			clear(key)
		}
	}
	secret.Do(work)
	secret.Forget()
	fmt.Printf("%x\n", kept[:4])
	os.Stdin.Read(masked[:1]) //nolint:errcheck // the end is what is waited for
	runtime.KeepAlive(spill)
}

// TestDoLeavesNothing: after Do and Forget the process holds the key nowhere, neither
// as it is nor as SHA-256 loads it. A copy that is planted is found.
func TestDoLeavesNothing(t *testing.T) {
	for part, found := range map[string]bool{"clean": false, "planted": true} {
		t.Run(part, func(t *testing.T) {
			key := bytes.Repeat([]byte{0}, 64)
			for i := range key {
				key[i] = byte(31*i*i + 7*i + 11 + len(part))
			}
			if got := searchChild(t, part, key); (len(got) > 0) != found {
				t.Errorf("Enabled is %v; the key was found at %q", secret.Enabled(), got)
			}
		})
	}
}

func searchChild(t *testing.T, part string, key []byte) (found []string) {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), partEnv+"="+part, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	masked := make([]byte, len(key))
	unmask(masked, key)
	_, err = in.Write(masked)
	check(t, err)
	line := make([]byte, 8)
	_, err = out.Read(line)
	check(t, err)
	if want := sha256.Sum256(key); string(line) != fmt.Sprintf("%x", want[:4]) {
		t.Fatalf("the process did not handle the key: %q", line)
	}
	loaded := make([]byte, len(key)) // SHA-256 reads words of 4 bytes, big-endian
	for i := 0; i < len(key); i += 4 {
		binary.NativeEndian.PutUint32(loaded[i:], binary.BigEndian.Uint32(key[i:]))
	}
	for _, needle := range [][]byte{key[:16], key[16:32], key[32:48], key[48:], loaded[:16], loaded[48:]} {
		found = append(found, search(t, cmd.Process.Pid, needle)...)
	}
	check(t, in.Close())
	check(t, cmd.Wait())
	return found
}

// search returns where in a process's memory the needle is.
func search(t *testing.T, pid int, needle []byte) (found []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	check(t, err)
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	check(t, err)
	defer memory.Close()
	read := 0
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		from, to, _ := strings.Cut(f[0], "-")
		lo, err1 := strconv.ParseInt(from, 16, 64)
		hi, err2 := strconv.ParseInt(to, 16, 64)
		if f[1][:2] != "rw" || err1 != nil || err2 != nil || hi-lo > 1<<30 {
			continue
		}
		b := make([]byte, hi-lo)
		n, _ := memory.ReadAt(b, lo)
		read += n
		if i := bytes.Index(b[:n], needle); i >= 0 {
			found = append(found, fmt.Sprintf("%s+%#x", strings.Join(f, " "), i))
		}
	}
	if read < 1<<20 {
		t.Fatalf("only %d bytes of the process could be read", read)
	}
	return found
}

// TestDoPanics: a panic within Do goes on to the caller.
func TestDoPanics(t *testing.T) {
	defer func() {
		if p := recover(); p != "given up" {
			t.Errorf("recovered %v", p)
		}
	}()
	secret.Do(func() { panic("given up") })
}

// TestWhy: whoever refuses for want of Enabled has something to say.
func TestWhy(t *testing.T) {
	if (secret.Why() == "") != secret.Enabled() {
		t.Errorf("Enabled is %v, and why not: %q", secret.Enabled(), secret.Why())
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
