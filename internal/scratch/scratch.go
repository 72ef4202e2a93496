// Package scratch runs a daemon for a command that needs one of its own for a
// moment, as the demo and the benchmark do: without root, apart from every other
// daemon of the host, and gone with all that it held when the command ends.
package scratch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// readyWithin is how long the daemon may take to start.
const readyWithin = 15 * time.Second

// A Daemon runs until End. Its methods belong to one goroutine.
type Daemon struct {
	c    *client.Client
	cmd  *exec.Cmd
	log  bytes.Buffer // read only when the process has ended
	done chan error   // what Wait returned
}

// Start runs the program self as a daemon that keeps everything under dir/d, of
// which the path must be short enough for a unix socket, and that may open drives
// beneath driveDir, of which dir/d must not be a part. It returns when the daemon
// is ready.
func Start(ctx context.Context, self, dir, driveDir string) (*Daemon, error) {
	dev := filepath.Join(dir, "d")
	d := &Daemon{done: make(chan error, 1)}
	d.cmd = exec.Command(self, "serve", "--dev", dev, "--drive-dir", driveDir)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the command, which ends its daemon
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a daemon: %w", err)
	}
	go func() { d.done <- d.cmd.Wait() }()
	d.c = client.Dial(filepath.Join(dev, "vacate.sock"))
	for deadline := time.Now().Add(readyWithin); ; time.Sleep(10 * time.Millisecond) {
		s, err := d.c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
		if err == nil && s.GetReady() {
			return d, nil
		}
		if err == nil {
			err = errors.New(s.GetReadyWhy())
		}
		select {
		case ended := <-d.done:
			d.c.Close()
			return nil, fmt.Errorf("the daemon that was started for this has ended: %w: %s", errors.Join(ended, err), d.log.String())
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			killed := errors.Join(d.cmd.Process.Kill(), ignoreExit(<-d.done))
			d.c.Close()
			if ctx.Err() != nil {
				return nil, errors.Join(context.Cause(ctx), killed)
			}
			return nil, errors.Join(fmt.Errorf("the daemon that was started for this does not answer: %w: %s", err, d.log.String()), killed)
		}
	}
}

// ignoreExit drops the error of a process that was killed.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// End erases what is open, and waits for the daemon's end, also when ctx is done.
func (d *Daemon) End(ctx context.Context) error {
	defer d.c.Close()
	_, err := d.c.Node.Stop(context.WithoutCancel(ctx), &vacatev1.NodeServiceStopRequest{Erase: true})
	if err != nil {
		err = errors.Join(err, d.cmd.Process.Kill())
	}
	return errors.Join(err, <-d.done)
}

// Enroll makes a drive of what lies at path.
func (d *Daemon) Enroll(ctx context.Context, path string) (*vacatev1.Drive, error) {
	resp, err := d.c.Drives.Enroll(ctx, &vacatev1.DriveServiceEnrollRequest{Path: path})
	return resp.GetDrive(), err
}

// Open opens a lease of size bytes on a drive.
func (d *Daemon) Open(ctx context.Context, tenant, drive string, size int64) (*vacatev1.Lease, error) {
	resp, err := d.c.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: size, Tenant: tenant, Drive: drive})
	return resp.GetLease(), err
}

// Close closes a lease.
func (d *Daemon) Close(ctx context.Context, id string) (*vacatev1.Lease, error) {
	resp, err := d.c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
	return resp.GetLease(), err
}
