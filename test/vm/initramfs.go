package vm

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Paths in the machine, which the init program knows too.
const (
	vacatePath = "/bin/vacate"
	modulesDir = "/lib/modules" // all in it are loaded, in the order of their names
	laterDir   = "/lib/later"   // what is in it is loaded when the test asks for it
	initPath   = "/init"
)

// Contents are what a machine's root file system holds besides the init program.
type Contents struct {
	Kernel   Kernel   // whose modules are loaded
	Later    []string // names of modules that are there to be loaded
	Vacate   string   // path of the binary; "": none
	Programs []string // by their paths in the folder of [Programs]
	// Files are others, from their path in the machine to that on the host.
	Files map[string]string
}

// Initramfs writes the root file system of a machine to a file in dir: the init
// program, which it builds, and the contents. It is run within the module.
func Initramfs(dir string, c Contents) (name string, err error) {
	initProgram := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", initProgram, "vacate/test/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the machine's init: %w\n%s", err, out)
	}
	files := map[string]string{}
	if len(c.Programs) > 0 {
		p, err := FindPrograms()
		if err != nil {
			return "", err
		}
		if files, err = p.files(c.Programs); err != nil {
			return "", err
		}
	}
	maps.Copy(files, c.Files)
	files[initPath] = initProgram
	if c.Vacate != "" {
		files[vacatePath] = c.Vacate
	}
	for i, m := range c.Kernel.Modules {
		files[fmt.Sprintf("%s/%02d-%s", modulesDir, i, filepath.Base(m))] = m
	}
	for _, m := range c.Later {
		path, err := c.Kernel.module(m)
		if err != nil {
			return "", err
		}
		files[laterDir+"/"+filepath.Base(path)] = path
	}
	name = filepath.Join(dir, "initramfs.cpio")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	return name, errors.Join(pack(&archive{w: w}, files), w.Flush())
}

// pack writes files, from their path in the machine to that on the host, and the
// folders that the init program expects.
func pack(a *archive, files map[string]string) error {
	seen := map[string]bool{".": true}
	var folder func(name string)
	folder = func(name string) {
		if !seen[name] {
			seen[name] = true
			folder(path.Dir(name))
			a.dir(name)
		}
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "run", "tmp", "state", "mnt"} {
		folder(d)
	}
	a.device("dev/console", 0o600, 5, 1)
	for _, in := range slices.Sorted(maps.Keys(files)) {
		b, err := os.ReadFile(files[in])
		if err != nil {
			return err
		}
		in = strings.TrimPrefix(path.Clean(in), "/")
		folder(path.Dir(in))
		perm := 0o755
		if path.Ext(in) == ".xz" {
			perm = 0o644
		}
		a.file(in, perm, b)
	}
	return a.close()
}
