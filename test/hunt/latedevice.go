package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"vacate/test/slow"
)

// slowest is how long a write takes at most on the device "slow".
const slowest = 40 * time.Millisecond

// makeDevice makes a drive on which writes outlive their process. undo, never nil,
// takes it away.
func (h *lateHunt) makeDevice() (undo func() error, err error) {
	undo = func() error { return nil }
	h.path = filepath.Join(h.dir, "late.img")
	if err := errors.Join(os.WriteFile(h.path, nil, 0o600), os.Truncate(h.path, h.size)); err != nil {
		return undo, err
	}
	switch h.device {
	case "file":
		return undo, nil
	case "loop":
		out, err := exec.Command("losetup", "-f", "--show", h.path).CombinedOutput()
		if err != nil {
			return undo, fmt.Errorf("losetup: %w: %s", err, out)
		}
		h.path = strings.TrimSpace(string(out))
		return func() error {
			if out, err := exec.Command("losetup", "-d", h.path).CombinedOutput(); err != nil {
				return fmt.Errorf("losetup -d %s: %w: %s", h.path, err, out)
			}
			return nil
		}, nil
	case "slow":
		back := h.path
		h.path = filepath.Join(h.dir, "slow.img")
		if h.slow, err = slow.Open(h.path, back, slowest, h.seed); err != nil {
			return undo, err
		}
		return h.slow.Close, nil
	}
	return undo, fmt.Errorf("-device %s: want slow, loop or file", h.device)
}
