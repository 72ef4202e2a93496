// Package tpmtest runs a software TPM (swtpm) for tests.
package tpmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A Machine is a TPM whose power can be cut. Its seeds survive that.
type Machine struct {
	tb    testing.TB
	dir   string
	state string
	cmd   *exec.Cmd
	power io.Closer // the input of cmd
	out   bytes.Buffer
}

// patience is how long a busy machine may take for one step.
const patience = time.Minute

// Start runs a TPM until the test ends. It fails the test where swtpm is not
// installed.
func Start(tb testing.TB) *Machine {
	tb.Helper()
	dir, err := os.MkdirTemp("", "vtpm") // a socket's path has 107 bytes
	if err != nil {
		tb.Fatal(err)
	}
	m := &Machine{tb: tb, dir: dir, state: filepath.Join(dir, "state")}
	if err := os.Mkdir(m.state, 0o700); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		m.stop()
		os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	})
	m.start()
	return m
}

// Path is the socket that takes commands, one connection at a time.
func (m *Machine) Path() string { return filepath.Join(m.dir, "s") }

func (m *Machine) control() string { return filepath.Join(m.dir, "c") }

// Reboot cuts the power and starts the TPM again: connections end, the reset
// count rises.
func (m *Machine) Reboot() {
	m.tb.Helper()
	m.stop()
	m.start()
}

// Reset resets the TPM under its connections, which go on.
func (m *Machine) Reset() {
	m.tb.Helper()
	out, err := exec.Command("swtpm_ioctl", "--unix", m.control(), "-i").CombinedOutput()
	if err != nil {
		m.tb.Fatalf("resetting the TPM: %v: %s", err, out)
	}
}

// Measure extends register 9, as a boot loader does with the kernel that it
// starts. Nobody else may be connected.
func (m *Machine) Measure(what string) {
	m.tb.Helper()
	c, err := net.Dial("unix", m.Path())
	if err != nil {
		m.tb.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the answer was read
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		m.tb.Fatal(err)
	}
	digest := sha256.Sum256([]byte(what))
	// TPM2_PCR_Extend (part 3, section 22.2): header with sessions, register, an
	// authorization by an empty password, one digest of SHA-256.
	command, err := hex.DecodeString("8002" + "00000041" + "00000182" + "00000009" + "00000009" + "40000009" + "0000" + "00" + "0000" + "00000001" + "000b")
	if err != nil {
		m.tb.Fatal(err)
	}
	if _, err := c.Write(append(command, digest[:]...)); err != nil {
		m.tb.Fatal(err)
	}
	answer := make([]byte, 64)
	n, err := c.Read(answer)
	if err != nil || n < 10 || !bytes.Equal(answer[6:10], make([]byte, 4)) {
		m.tb.Fatalf("extending a register: %x, %v", answer[:n], err)
	}
}

// keep runs swtpm until its own input ends, which it does when the test's process
// does, however that ends.
const keep = `swtpm "$@" & read -r _; kill -9 $!; wait`

func (m *Machine) start() {
	m.tb.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		m.tb.Fatal("swtpm is not installed: apt-get install swtpm swtpm-tools, or tools/test-packages.sh")
	}
	m.cmd = exec.Command("sh", "-c", keep, "sh", "socket", "--tpm2", "--tpmstate", "dir="+m.state,
		"--server", "type=unixio,path="+m.Path(), "--ctrl", "type=unixio,path="+m.control(),
		"--flags", "not-need-init,startup-clear")
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	var err error
	if m.power, err = m.cmd.StdinPipe(); err != nil {
		m.tb.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		m.tb.Fatal(err)
	}
	for end := time.Now().Add(patience); !m.answers(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			m.stop()
			m.tb.Fatalf("swtpm does not answer: %s", &m.out)
		}
	}
}

// answers asks the control channel for the TPM's capabilities. That it listens is
// not enough: it does before the channel of commands is there. Both are served by one
// loop.
func (m *Machine) answers() bool {
	c, err := net.Dial("unix", m.control())
	if err != nil {
		return false
	}
	defer c.Close() //nolint:errcheck // it was only tried
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return false
	}
	if _, err := c.Write([]byte{0, 0, 0, 1}); err != nil { // CMD_GET_CAPABILITY
		return false
	}
	_, err = io.ReadFull(c, make([]byte, 8))
	return err == nil
}

func (m *Machine) stop() {
	if m.cmd == nil {
		return
	}
	m.power.Close()        //nolint:errcheck // the shell kills swtpm
	m.cmd.Wait()           //nolint:errcheck // it was killed
	os.Remove(m.Path())    //nolint:errcheck // swtpm leaves its sockets
	os.Remove(m.control()) //nolint:errcheck // the same
	m.cmd = nil
}
