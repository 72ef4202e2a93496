package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"vacate/test/vm/wire"
)

// Of docs/spec/volatile.md: the size of the keys' file, and of a slot in it.
const (
	keysBytes = 1 << 20
	slotBytes = 1024
)

// System calls that package syscall does not know; the numbers are the same on
// all architectures.
const (
	sysPidfdOpen  = 434
	sysPidfdGetfd = 438
)

// keys reads the keys' memory: no other process' memory can be read where it is
// memfd_secret(2), root's neither, but root may take the descriptor itself.
func (d *daemon) keys() (k wire.Keys, err error) {
	pid := d.cmd.Process.Pid
	number, secret, err := keysDescriptor(pid)
	if err != nil {
		return k, err
	}
	f, err := takeDescriptor(pid, number)
	if err != nil {
		return k, err
	}
	defer f.Close()
	b, err := syscall.Mmap(int(f.Fd()), 0, keysBytes, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return k, fmt.Errorf("mapping the keys: %w", err)
	}
	defer func() { err = errors.Join(err, syscall.Munmap(b)) }()
	k.Secret = secret
	zero := make([]byte, slotBytes)
	for slot := range slices.Chunk(b, slotBytes) {
		if !slices.Equal(slot, zero) {
			k.Slots = append(k.Slots, slices.Clone(slot))
		}
	}
	return k, nil
}

// keysDescriptor finds the keeper's descriptor of the keys: memfd_secret(2), or
// the one memfd of their size whose name says so.
func keysDescriptor(pid int) (number int, secret bool, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, false, err
	}
	var seen []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // it was closed meanwhile
		}
		seen = append(seen, target)
		secret := strings.HasPrefix(target, "/secretmem") || strings.HasPrefix(target, "secretmem:")
		if secret || strings.HasPrefix(target, "/memfd:") && strings.Contains(target, "keys") {
			number, err := strconv.Atoi(e.Name())
			return number, secret, err
		}
	}
	return 0, false, fmt.Errorf("the keeper (pid %d) has no descriptor of keys: %q", pid, seen)
}

func takeDescriptor(pid, number int) (*os.File, error) {
	pidfd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_open", errno)
	}
	defer syscall.Close(int(pidfd))
	fd, _, errno := syscall.Syscall(sysPidfdGetfd, pidfd, uintptr(number), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_getfd", errno)
	}
	return os.NewFile(fd, "keys"), nil
}
