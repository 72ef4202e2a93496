package ublkctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/ublkcmd"
)

// The commands themselves are tested with the kernel's driver (test/vm, TestDevices).

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		err   error
		why   error
		errno syscall.Errno
		parts string // of the text
	}{
		{openError(&fs.PathError{Op: "open", Err: syscall.ENOENT}), ErrNoDriver, syscall.ENOENT, "modprobe ublk_drv"},
		{openError(&fs.PathError{Op: "open", Err: syscall.ENODEV}), ErrNoDriver, syscall.ENODEV, "modprobe ublk_drv"},
		{openError(&fs.PathError{Op: "open", Err: syscall.EACCES}), ErrNoPermission, syscall.EACCES, "CAP_SYS_ADMIN"},
		{openError(&fs.PathError{Op: "open", Err: syscall.EPERM}), ErrNoPermission, syscall.EPERM, "CAP_SYS_ADMIN"},
		{openError(&fs.PathError{Op: "open", Err: syscall.EMFILE}), nil, syscall.EMFILE, "too many open files"},
		{nodeError(3, &fs.PathError{Op: "open", Err: syscall.ENOENT}), ErrNoNode, syscall.ENOENT, "devtmpfs"},
		{nodeError(3, &fs.PathError{Op: "open", Err: syscall.EBUSY}), nil, syscall.EBUSY, "device 3"},
		{ringError(syscall.EINVAL), ErrTooOld, syscall.EINVAL, "Linux 6.5"},
		{ringError(syscall.ENOSYS), nil, syscall.ENOSYS, "ublk"},
		{commandError("making one", -1, ublkcmd.AddDev, syscall.EACCES), ErrFull, syscall.EACCES, "ublks_max"},
		{commandError("making one", -1, ublkcmd.AddDev, syscall.EPERM), ErrNoPermission, syscall.EPERM, "CAP_SYS_ADMIN"},
		{commandError("asking", -1, ublkcmd.GetFeatures, syscall.ENODEV), ErrTooOld, syscall.ENODEV, "6.5"},
		{commandError("asking", -1, ublkcmd.GetFeatures, syscall.EOPNOTSUPP), ErrTooOld, syscall.EOPNOTSUPP, "6.5"},
		{commandError("looking at it", 7, ublkcmd.GetDevInfo, syscall.ENODEV), ErrNoDevice, syscall.ENODEV, "device 7"},
		{commandError("giving it a new server", 7, ublkcmd.BeginRecovery, syscall.EBUSY), nil, syscall.EBUSY, "device 7, giving it a new server: device or resource busy"},
	} {
		if tt.why != nil && !errors.Is(tt.err, tt.why) || !errors.Is(tt.err, tt.errno) || !strings.Contains(tt.err.Error(), tt.parts) {
			t.Errorf("%v: want %v, %v, %q", tt.err, tt.why, tt.errno, tt.parts)
		}
		for _, other := range []error{ErrNoDriver, ErrNoPermission, ErrTooOld, ErrNoDevice, ErrFull, ErrNoNode} {
			if other != tt.why && errors.Is(tt.err, other) {
				t.Errorf("%v is also %v", tt.err, other)
			}
		}
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"ublkc0", "ublkc12", "ublkc", "ublkc-1", "ublkc01", "ublkc1x", "x1"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := list(dir)
	if slices.Sort(ids); err != nil || !slices.Equal(ids, []int{0, 12}) {
		t.Errorf("%v, %v", ids, err)
	}
	if ids, err := list(filepath.Join(dir, "none")); err != nil || len(ids) != 0 {
		t.Errorf("without the driver: %v, %v", ids, err)
	}
}

func TestAtLeast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ublks_max")
	for _, tt := range []struct{ has, want string }{{"64\n", "4096"}, {"4096\n", "4096\n"}, {"1048576\n", "1048576\n"}, {"nonsense", "4096"}} {
		if err := os.WriteFile(path, []byte(tt.has), 0o600); err != nil {
			t.Fatal(err)
		}
		err := atLeast(path, 4096)
		if b, rerr := os.ReadFile(path); err != nil || rerr != nil || !strings.HasPrefix(string(b), strings.TrimSpace(tt.want)) {
			t.Errorf("%q became %q, %v, %v", tt.has, b, err, rerr)
		}
	}
	if err := atLeast(filepath.Join(t.TempDir(), "none"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the driver: %v", err)
	}
}
