package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/vm/wire"
)

// controllerOf is the folder of a drive's NVMe controller in sysfs.
func controllerOf(drive string) (string, error) {
	drives, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return "", err
	}
	for _, d := range drives {
		if readLine(d+"/device/serial") == wire.SerialPrefix+drive {
			return filepath.EvalSymlinks(d + "/device")
		}
	}
	return "", fmt.Errorf("no NVMe drive %s: there are %v", drive, drives)
}

// breakDrive opens a lease, breaks its drive while the lease is read, and says
// what the reader saw. Nothing may be read but what was written.
func (a *agent) breakDrive(b wire.Break) (out wire.Broken, err error) {
	const sectors = 64
	v, err := a.open(b.Canary, fmt.Sprintf("break-%x", b.Canary.Tag), "/dev/"+b.Drive, 1<<20)
	if err != nil {
		return out, err
	}
	out.Lease = v.lease
	if err := errors.Join(v.write(0, sectors), v.verify(0, sectors)); err != nil {
		return out, err
	}
	for range wire.BreakFlushes {
		if err := v.nbd.Flush(); err != nil {
			return out, err
		}
	}
	controller, err := controllerOf(b.Drive)
	if err != nil {
		return out, err
	}
	file := filepath.Join(controller, b.File)
	if b.Dead {
		if err := a.withoutEngine(func() error { return os.WriteFile(file, []byte(b.Text), 0) }); err != nil {
			return out, err
		}
		out.Reads, out.Errno, out.Text = v.readUntilError(sectors)
		return out, nil
	}
	if b.Held {
		control, err := childOf(a.daemon.cmd.Process.Pid, "control")
		if err != nil {
			return out, err
		}
		if err := syscall.Kill(control, syscall.SIGSTOP); err != nil {
			return out, err
		}
		defer syscall.Kill(control, syscall.SIGCONT) //nolint:errcheck // it is there
	}
	broken := make(chan error, 1)
	go func() {
		time.Sleep(50 * time.Millisecond) // the reader is under way
		broken <- os.WriteFile(file, []byte(b.Text), 0)
	}()
	out.Reads, out.Errno, out.Text = v.readUntilError(sectors)
	if b.Held {
		p := make([]byte, 4096)
		_, rerr := v.nbd.ReadAt(p, 0)
		_, werr := v.nbd.WriteAt(p, 512<<10)
		for _, err := range []error{rerr, werr, v.nbd.Flush()} {
			out.Later = append(out.Later, number(err))
		}
	}
	return out, <-broken
}

// number is the number of a server's answer; 0: there was none.
func number(err error) int {
	if answer := (*nbdclient.Error)(nil); errors.As(err, &answer) {
		return int(answer.Errno)
	}
	return 0
}

// readUntilError reads sectors until that fails. What ends a connection has no
// number.
func (v *volume) readUntilError(sectors int64) (reads, errno int, text string) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); reads++ {
		if err := v.verify(0, sectors); err != nil {
			return reads, number(err), err.Error()
		}
	}
	return reads, 0, "no read has failed"
}

// withoutEngine kills the engine and does what is to be done before the keeper can
// start another.
func (a *agent) withoutEngine(do func() error) error {
	keeper := a.daemon.cmd.Process.Pid
	engine, err := childOf(keeper, "engine")
	if err != nil {
		return err
	}
	if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
		return err
	}
	defer syscall.Kill(keeper, syscall.SIGCONT) //nolint:errcheck // it is there
	if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
		return err
	}
	return do()
}

// childOf finds the child of a process that was started with this command.
func childOf(parent int, command string) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range stats {
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(args, []byte("\x00"+command+"\x00")) && !bytes.HasSuffix(args, []byte("\x00"+command)) {
			continue
		}
		stat := readLine(dir + "/stat")
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("process %d has no child %q", parent, command)
}

// findDrive writes a file of sysfs, and names the drives anew until one has the
// name that is wanted.
func findDrive(d wire.Drive) error {
	if d.File != "" {
		if err := os.WriteFile(d.File, []byte(d.Text), 0); err != nil {
			return err
		}
	}
	name := "/dev/" + d.Name
	if err := os.Remove(name); err != nil {
		return err
	}
	return nameDrives(name)
}
