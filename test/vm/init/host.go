package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vacate/test/vm/left"
	"vacate/test/vm/wire"
)

// laterDir holds modules that are loaded when the test asks for them.
const laterDir = "/lib/later"

// host carries out what a host of block devices does. Its second result is false if
// the request is none of these.
func (a *agent) host(r wire.Request) (any, bool, error) {
	switch r.Do {
	case "module":
		return nil, true, with(r, func(m wire.Module) error {
			err := loadModule(filepath.Join(laterDir, m.Name+".ko.xz"), m.Parameters)
			if errors.Is(err, syscall.EEXIST) {
				return nil
			}
			return err
		})
	case "kill":
		v, err := reply(r, a.kill)
		return v, true, err
	case "device":
		v, err := reply(r, findDevice)
		return v, true, err
	case "fill":
		return nil, true, with(r, fill)
	case "check-fill":
		return nil, true, with(r, checkFill)
	case "kernel-mark":
		return nil, true, with(r, func(m wire.Mark) error {
			return os.WriteFile("/dev/kmsg", []byte(m.Text+"\n"), 0)
		})
	case "times":
		v, err := times()
		return v, true, err
	case "left":
		v, err := left.Places{Proc: "/proc", Sys: "/sys", Dev: "/dev", Leases: runDir + "/leases", Program: vacate}.Count()
		return v, true, err
	}
	return nil, false, nil
}

// kill ends a process of the daemon's with SIGKILL, and waits until the next one of its
// kind is there and the daemon is ready.
func (a *agent) kill(k wire.Kill) (done wire.Killed, err error) {
	if a.daemon == nil {
		return done, errors.New("no daemon was started")
	}
	keeper := a.daemon.cmd.Process.Pid
	pid, err := childOf(keeper, k.Command)
	if err != nil {
		return done, err
	}
	start := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return done, fmt.Errorf("killing the %s, process %d: %w", k.Command, pid, err)
	}
	for ; ; time.Sleep(5 * time.Millisecond) {
		next, err := childOf(keeper, k.Command)
		if err == nil && next != pid {
			break
		}
		if time.Since(start) > startTimeout {
			return done, fmt.Errorf("no %s follows the process %d", k.Command, pid)
		}
	}
	err = a.daemon.waitReady()
	done.Took = time.Since(start)
	return done, err
}

// findDevice describes the block device that a path leads to.
func findDevice(d wire.Device) (out wire.Disk, err error) {
	path, err := filepath.EvalSymlinks(d.Path)
	if err != nil {
		return out, err
	}
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil || s.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return out, fmt.Errorf("%s leads to %s, which is no block device: %w", d.Path, path, err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/block", filepath.Base(path)))
	if err != nil {
		return out, err
	}
	out, err = describe(dir, "")
	out.Path, out.Owner, out.Mode = path, s.Uid, s.Mode&0o7777
	return out, err
}

const (
	fillUnit  = 4096
	fillChunk = 256 << 10
)

// content is what a seed gives for the units from one on.
func content(p []byte, seed uint64, unit int64) {
	for ; len(p) > 0; p, unit = p[fillUnit:], unit+1 {
		var key [32]byte
		r := rand.New(rand.NewPCG(seed, uint64(unit)))
		for i := range key {
			key[i] = byte(r.Uint32())
		}
		rand.NewChaCha8(key).Read(p[:fillUnit]) //nolint:errcheck // it never fails
	}
}

func checkRange(f wire.Fill) error {
	if (f.Start|f.Size|f.At)%fillUnit != 0 || f.Start < 0 || f.Size <= 0 || f.At < 0 {
		return fmt.Errorf("%d bytes at %d, counted from %d, are no whole units of %d", f.Size, f.Start, f.At, fillUnit)
	}
	return nil
}

// fill writes a part of a device and flushes it.
func fill(w wire.Fill) error {
	if err := checkRange(w); err != nil {
		return err
	}
	f, err := os.OpenFile(w.Device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // what was written was synced
	p := make([]byte, min(w.Size, fillChunk))
	for at := int64(0); at < w.Size; at += int64(len(p)) {
		p = p[:min(int64(len(p)), w.Size-at)]
		content(p, w.Seed, (w.At+at)/fillUnit)
		if _, err := f.WriteAt(p, w.Start+at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// checkFill compares a part of a device with what fill wrote. The kernel forgets
// before what it has of it in memory.
func checkFill(w wire.Fill) error {
	if err := errors.Join(checkRange(w), forget()); err != nil {
		return err
	}
	f, err := os.Open(w.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	p, want := make([]byte, min(w.Size, fillChunk)), make([]byte, min(w.Size, fillChunk))
	for at := int64(0); at < w.Size; at += int64(len(p)) {
		p = p[:min(int64(len(p)), w.Size-at)]
		if _, err := f.ReadAt(p, w.Start+at); err != nil {
			return err
		}
		content(want[:len(p)], w.Seed, (w.At+at)/fillUnit)
		if i := differ(p, want[:len(p)]); i < len(p) {
			return fmt.Errorf("byte %d of %s is not what was written there: it reads % x…", w.Start+at+int64(i), w.Device, p[i:min(i+24, len(p))])
		}
	}
	return nil
}
