package vm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Paths in the machine, which the init program knows too.
const (
	vacatePath = "/bin/vacate"
	modulesDir = "/lib/modules" // all in it are loaded, in the order of their names
	initPath   = "/init"
)

// Initramfs writes the root file system of a machine to a file in dir: the init
// program, which it builds, the kernel's modules, and the given binary of vacate.
// It is run within the module.
func Initramfs(dir, vacate string, k Kernel) (path string, err error) {
	initProgram := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", initProgram, "vacate/test/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the machine's init: %w\n%s", err, out)
	}
	initBytes, err := os.ReadFile(initProgram)
	if err != nil {
		return "", err
	}
	vacateBytes, err := os.ReadFile(vacate)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "initramfs.cpio")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	a := &archive{w: w}
	for _, d := range []string{"bin", "dev", "proc", "sys", "run", "tmp", "state", "lib", modulesDir} {
		a.dir(d)
	}
	a.device("dev/console", 0o600, 5, 1)
	a.file(initPath, 0o755, initBytes)
	a.file(vacatePath, 0o755, vacateBytes)
	for i, m := range k.Modules {
		b, err := os.ReadFile(m)
		if err != nil {
			return "", err
		}
		a.file(fmt.Sprintf("%s/%02d-%s", modulesDir, i, filepath.Base(m)), 0o644, b)
	}
	return path, errors.Join(a.close(), w.Flush())
}
