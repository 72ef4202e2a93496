package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

// readyWithin is how long the demo's daemon may take to start.
const readyWithin = 15 * time.Second

// A node is the demo's own daemon.
type node struct {
	c    *client.Client
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error // what Wait returned
}

// drivePath is where the drive lies: apart from the daemon's state, which the
// engine must not reach.
func drivePath(dir string) string { return filepath.Join(dir, "drives", "drive") }

func startNode(ctx context.Context, self, dir string) (*node, error) {
	dev := filepath.Join(dir, "d")
	if err := os.Mkdir(filepath.Dir(drivePath(dir)), 0o700); err != nil {
		return nil, err
	}
	n := &node{done: make(chan error, 1)}
	n.cmd = exec.Command(self, "serve", "--dev", dev, "--drive-dir", filepath.Dir(drivePath(dir)))
	n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a daemon: %w", err)
	}
	go func() { n.done <- n.cmd.Wait() }()
	n.c = client.Dial(filepath.Join(dev, "vacate.sock"))
	for deadline := time.Now().Add(readyWithin); ; time.Sleep(10 * time.Millisecond) {
		s, err := n.c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
		if err == nil && s.GetReady() {
			return n, nil
		}
		if err == nil {
			err = errors.New(s.GetReadyWhy())
		}
		select {
		case ended := <-n.done:
			return nil, fmt.Errorf("the demo's daemon has ended: %w: %s", errors.Join(ended, err), n.log.String())
		default:
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("the demo's daemon does not answer: %w: %s", err, n.log.String()), n.cmd.Process.Kill())
		}
	}
}

// end erases what may be open and waits for the daemon's end.
func (n *node) end(ctx context.Context) error {
	defer n.c.Close()
	_, err := n.c.Node.Stop(context.WithoutCancel(ctx), &vacatev1.NodeServiceStopRequest{Erase: true})
	if err != nil {
		err = errors.Join(err, n.cmd.Process.Kill())
	}
	return errors.Join(err, <-n.done)
}

// enroll makes a file of size bytes and enrols it. It returns its path and the
// bytes that a lease may take.
func (n *node) enroll(ctx context.Context, path string, size int64) (string, int64, error) {
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		return "", 0, err
	}
	resp, err := n.c.Drives.Enroll(ctx, &vacatev1.DriveServiceEnrollRequest{Path: path})
	if err != nil {
		return "", 0, err
	}
	return path, resp.GetDrive().GetFreeBytes(), nil
}

func (n *node) open(ctx context.Context, tenant, drive string, size int64) (*vacatev1.Lease, error) {
	resp, err := n.c.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: size, Tenant: tenant, Drive: drive})
	return resp.GetLease(), err
}

func (n *node) close(ctx context.Context, id string) (*vacatev1.Lease, error) {
	resp, err := n.c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
	return resp.GetLease(), err
}
