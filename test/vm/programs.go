package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Programs is the folder of Debian 13's programs that tools/test-kernel.sh
// fetches. They run in machines, and on the host with the libraries of that
// folder.
type Programs struct{ dir string }

// Paths beneath the folder. In a machine the loader has its own path, from which
// programs name it, and the libraries those below [Programs].
const (
	loader    = "usr/lib64/ld-linux-x86-64.so.2"
	libraries = "usr/lib/x86_64-linux-gnu"
	loaderIn  = "lib64/ld-linux-x86-64.so.2"
	shell     = "usr/bin/dash"
	shellIn   = "bin/sh" // from which scripts name it
)

// FindPrograms returns the folder in the user's cache.
func FindPrograms() (p Programs, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return p, err
	}
	p.dir = filepath.Join(cache, "vacate-test", "programs-trixie")
	if _, err := os.Stat(filepath.Join(p.dir, loader)); err != nil {
		return p, fmt.Errorf("no programs at %s: run tools/test-kernel.sh, which fetches them, or `make test-vm`, which runs it: %w", p.dir, err)
	}
	return p, nil
}

// Path returns the path of a file of the folder on the host.
func (p Programs) Path(name string) string { return filepath.Join(p.dir, name) }

// Command is a program of the folder, by its path there (usr/bin/qemu-io), to be
// run on the host.
func (p Programs) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	lib := p.Path(libraries)
	all := append([]string{"--library-path", lib + ":" + filepath.Join(lib, "systemd"), p.Path(name)}, args...)
	cmd := exec.CommandContext(ctx, p.Path(loader), all...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(lib, "qemu"))
	return cmd
}

// files returns the path in a machine and the path on the host of each file that
// the named programs need, themselves included.
func (p Programs) files(names []string) (map[string]string, error) {
	files := map[string]string{}
	if len(names) > 0 {
		files[loaderIn] = p.Path(loader)
	}
	for _, n := range names {
		if err := p.add(files, n); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// add adds a program or library, by its path in the folder, and those it names.
func (p Programs) add(files map[string]string, name string) error {
	if files[name] != "" {
		return nil
	}
	files[name] = p.Path(name)
	if b, err := os.ReadFile(p.Path(name)); err == nil && bytes.HasPrefix(b, []byte("#!/bin/sh")) {
		files[shellIn] = p.Path(shell)
		return p.add(files, shell)
	}
	f, err := elf.Open(p.Path(name))
	if err != nil {
		return fmt.Errorf("reading what %s is made of: %w", name, err)
	}
	defer f.Close() //nolint:errcheck // read to the end
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading the libraries of %s: %w", name, err)
	}
	for _, lib := range needed {
		if strings.HasPrefix(lib, "ld-linux") {
			continue
		}
		in, err := p.library(lib)
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", name, lib, err)
		}
		if err := p.add(files, in); err != nil {
			return err
		}
	}
	return nil
}

// library is the path of a library beneath the folder. Ceph's libraries, which fio is
// linked with, name a folder of their own (DT_RUNPATH).
func (p Programs) library(lib string) (string, error) {
	for _, dir := range []string{libraries, libraries + "/ceph"} {
		in := filepath.Join(dir, lib)
		if _, err := os.Stat(p.Path(in)); !errors.Is(err, fs.ErrNotExist) {
			return in, err
		}
	}
	return "", fmt.Errorf("it is not in %s", p.Path(libraries))
}
