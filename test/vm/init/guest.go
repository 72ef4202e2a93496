package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"vacate/test/vm/wire"
)

// guest carries out what a guest does with a disk of its own. Its second result
// is false if the request is none of these.
func (a *agent) guest(r wire.Request) (any, bool, error) {
	switch r.Do {
	case "disk":
		v, err := reply(r, findDisk)
		return v, true, err
	case "exec":
		v, err := reply(r, execute)
		return v, true, err
	case "start":
		return nil, true, with(r, a.start)
	case "stop":
		v, err := reply(r, a.stop)
		return v, true, err
	case "attach":
		return nil, true, with(r, a.attach)
	case "detach":
		return nil, true, with(r, a.detach)
	case "tree":
		v, err := reply(r, writeTree)
		return v, true, err
	case "check-tree":
		v, err := reply(r, checkTree)
		return v, true, err
	case "remove-tree":
		return nil, true, with(r, func(t wire.Tree) error { return os.RemoveAll(treeDir(t)) })
	case "stress":
		return nil, true, with(r, a.startStress)
	case "stress-stop":
		v, err := a.stopStress()
		return v, true, err
	case "stress-check":
		return nil, true, with(r, checkStress)
	case "zeros":
		return nil, true, with(r, zeros)
	case "kernel-log":
		v, err := kernelLog()
		return v, true, err
	case "kexec":
		return nil, true, with(r, a.kexec)
	}
	return nil, false, nil
}

// reply decodes the body of a request that has a reply.
func reply[T, R any](r wire.Request, do func(T) (R, error)) (body R, err error) {
	err = with(r, func(t T) (err error) {
		body, err = do(t)
		return err
	})
	return body, err
}

// findDisk waits for the disk with a serial number.
func findDisk(d wire.Disk) (wire.Disk, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := filepath.Glob("/sys/block/*")
		if err != nil {
			return d, err
		}
		for _, dir := range all {
			if readLine(dir+"/serial") == d.Serial {
				return describe(dir, d.Serial)
			}
		}
		if time.Now().After(deadline) {
			return d, fmt.Errorf("no disk has the serial number %q: there are %v", d.Serial, all)
		}
	}
}

func describe(dir, serial string) (wire.Disk, error) {
	var errs []error
	number := func(file string) int64 {
		n, err := strconv.ParseInt(readLine(filepath.Join(dir, file)), 10, 64)
		errs = append(errs, err)
		return n
	}
	queues, err := filepath.Glob(dir + "/mq/*")
	errs = append(errs, err)
	d := wire.Disk{
		Serial: serial, Path: "/dev/" + filepath.Base(dir), Size: number("size") * 512,
		Logical: int(number("queue/logical_block_size")), Physical: int(number("queue/physical_block_size")),
		ReadOnly: number("ro") == 1, Discard: number("queue/discard_max_bytes"), Zeroes: number("queue/write_zeroes_max_bytes"),
		WriteCache: readLine(dir + "/queue/write_cache"), Queues: len(queues),
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return d, errors.Join(append(errs, err)...)
	}
	defer f.Close()
	d.FromEnd, err = f.Seek(0, io.SeekEnd)
	return d, errors.Join(append(errs, err)...)
}

// execTimeout is how long a program may take, unless the test says.
const execTimeout = 2 * time.Minute

// execute runs a program.
func execute(e wire.Exec) (ran wire.Ran, err error) {
	if e.Timeout == 0 {
		e.Timeout = execTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, e.Args[0], e.Args[1:]...)
	cmd.Stdin = strings.NewReader(e.Stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	ran = wire.Ran{Code: cmd.ProcessState.ExitCode(), Stdout: out.String(), Stderr: errOut.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		err = nil // the code tells
	}
	return ran, err
}

func (a *agent) attach(m wire.Attach) error {
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(m.Device, m.Dir, m.Kind, 0, ""); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.Device, m.Dir, err)
	}
	a.mounts = append(a.mounts, m.Dir)
	return nil
}

func (a *agent) detach(m wire.Attach) error {
	a.mounts = slices.DeleteFunc(a.mounts, func(dir string) bool { return dir == m.Dir })
	if err := syscall.Unmount(m.Dir, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", m.Dir, err)
	}
	return nil
}

// zeros demands that a part of a device reads zeros. The kernel forgets before
// what it has of it in memory.
func zeros(r wire.Range) error {
	f, err := os.Open(r.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := forget(); err != nil {
		return err
	}
	p, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := r.Start; at < r.Start+r.Size; {
		n, err := f.ReadAt(p[:min(int64(len(p)), r.Start+r.Size-at)], at)
		if err != nil {
			return err
		}
		if i := differ(p[:n], zero[:n]); i < n {
			return fmt.Errorf("byte %d of %s is not zero", at+int64(i), r.Device)
		}
		at += int64(n)
	}
	return nil
}

// forget writes what the kernel has to write, and empties its caches of files.
func forget() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// kernelLog returns what the kernel has said since it started.
func kernelLog() (string, error) {
	const readAll = 3 // syslog(2): SYSLOG_ACTION_READ_ALL
	p := make([]byte, 1<<20)
	n, err := syscall.Klogctl(readAll, p)
	return string(p[:max(n, 0)]), os.NewSyscallError("syslog", err)
}

// kexec starts another kernel after the reply.
func (a *agent) kexec(k wire.Kexec) error {
	if err := loadKernel(k); err != nil {
		return err
	}
	for _, dir := range slices.Clone(a.mounts) {
		if err := a.detach(wire.Attach{Dir: dir}); err != nil {
			return err
		}
	}
	time.AfterFunc(100*time.Millisecond, func() {
		fmt.Fprintln(os.Stderr, "init: starting another kernel:", syscall.Reboot(syscall.LINUX_REBOOT_CMD_KEXEC))
	})
	return nil
}

func loadKernel(k wire.Kexec) error {
	const sysKexecFileLoad = 320 // of amd64, the machine's
	kernel, err := os.Open(k.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initramfs, err := os.Open(k.Initramfs)
	if err != nil {
		return err
	}
	defer initramfs.Close()
	line := append([]byte(k.CommandLine), 0)
	_, _, errno := syscall.Syscall6(sysKexecFileLoad, kernel.Fd(), initramfs.Fd(), uintptr(len(line)), uintptr(unsafe.Pointer(&line[0])), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("kexec_file_load", errno)
	}
	return nil
}
