package demo

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"vacate/internal/scratch"
)

// drivePath is where the drive lies: apart from the daemon's state, which the
// engine must not reach.
func drivePath(dir string) string { return filepath.Join(dir, "drives", "drive") }

// startNode runs the demo's own daemon.
func startNode(ctx context.Context, self, dir string) (*scratch.Daemon, error) {
	drives := filepath.Dir(drivePath(dir))
	if err := os.Mkdir(drives, 0o700); err != nil {
		return nil, err
	}
	return scratch.Start(ctx, self, dir, drives)
}

// enroll makes a file of size bytes and enrols it. It returns its path and the
// bytes that a lease may take.
func enroll(ctx context.Context, d *scratch.Daemon, path string, size int64) (string, int64, error) {
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		return "", 0, err
	}
	dr, err := d.Enroll(ctx, path)
	return path, dr.GetFreeBytes(), err
}
