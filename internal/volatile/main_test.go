package volatile

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// The test binary runs itself as children that play a part of the test.
const partEnv = "VOLATILE_TEST_PART"

var parts = map[string]func() error{
	"ordinary user": partOrdinaryUser,
	"table writer":  partTableWriter,
	"keys writer":   partKeysWriter,
}

func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		if err := parts[part](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// part prepares a child. Its descriptors start at 4; 3 is the test binary,
// which its user may not be able to reach by name.
func part(t *testing.T, name string, files ...*os.File) *exec.Cmd {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { self.Close() })
	return &exec.Cmd{
		Path:       "/proc/self/fd/3",
		Args:       []string{"volatile.test"},
		Env:        append(os.Environ(), partEnv+"="+name),
		Dir:        "/",
		ExtraFiles: append([]*os.File{self}, files...),
	}
}

func asNobody(cmd *exec.Cmd) {
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}
