package ublkctl

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"vacate/internal/ublkcmd"
)

// Reasons, which an [*Error] wraps.
var (
	ErrNoDriver     = errors.New("the kernel's ublk driver is not there: load it with `modprobe ublk_drv`; if there is no such module, the kernel was built without CONFIG_BLK_DEV_UBLK (Debian 13 and Ubuntu 24.04 have it, the latter in linux-modules-extra)")
	ErrNoPermission = errors.New("this process may not use ublk: it needs CAP_SYS_ADMIN, and a device cgroup that lets it open /dev/ublk-control, which a container has with --privileged")
	ErrTooOld       = errors.New("this kernel's ublk is too old: it needs Linux 6.5, to resize a device in use 6.16")
	ErrNoDevice     = errors.New("there is no such ublk device")
	ErrFull         = errors.New("there are as many ublk devices as the driver admits: raise /sys/module/ublk_drv/parameters/ublks_max")
	ErrNoNode       = errors.New("the kernel has made it, but it has no node under /dev: that must be a devtmpfs, which in a container is mounted from the host (-v /dev:/dev)")
)

// notSupported is ENOTSUPP, which the kernel has for itself and this driver lets out.
const notSupported = syscall.Errno(524)

// An Error is a control command that was not done.
type Error struct {
	Op    string // what was done, for people
	ID    int    // of the device; -1: none yet
	Errno syscall.Errno
	Why   error // one of the reasons; nil: not known
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("ublk")
	if e.ID >= 0 {
		fmt.Fprintf(&b, " device %d", e.ID)
	}
	if e.Op != "" {
		b.WriteString(", " + e.Op)
	}
	if e.Why != nil {
		fmt.Fprintf(&b, ": %v (%v)", e.Why, e.Errno)
	} else {
		fmt.Fprintf(&b, ": %v", e.Errno)
	}
	return b.String()
}

// Unwrap is the reason and the errno.
func (e *Error) Unwrap() []error {
	if e.Why == nil {
		return []error{e.Errno}
	}
	return []error{e.Why, e.Errno}
}

// openError says why there is no control device.
func openError(err error) error {
	e := &Error{Op: "opening " + ControlPath, ID: noDevice, Errno: errnoOf(err)}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		e.Why = ErrNoDriver
	case errors.Is(err, fs.ErrPermission):
		e.Why = ErrNoPermission
	}
	return e
}

// nodeError says why a character device was not opened.
func nodeError(id int, err error) error {
	e := &Error{Op: "opening it for its server", ID: id, Errno: errnoOf(err)}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Why = ErrNoNode
	case errors.Is(err, fs.ErrPermission):
		e.Why = ErrNoPermission
	}
	return e
}

// ringError says why there is no ring: EINVAL is a kernel without big submissions.
func ringError(err error) error {
	e := &Error{Op: "making a ring", ID: noDevice, Errno: errnoOf(err)}
	if e.Errno == syscall.EINVAL {
		e.Why = ErrTooOld
		return e
	}
	return fmt.Errorf("ublk: %w", err)
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// commandError says why a command was not done.
func commandError(what string, id int, op ublkcmd.Op, errno syscall.Errno) error {
	e := &Error{Op: what, ID: id, Errno: errno}
	switch {
	case errno == syscall.EACCES && op == ublkcmd.AddDev: // ublk_ctrl_add_dev: ublks_added ≥ ublks_max
		e.Why = ErrFull
	case errno == syscall.EPERM, errno == syscall.EACCES:
		e.Why = ErrNoPermission
	case op == ublkcmd.GetFeatures: // before Linux 6.5 an unknown command, of no device
		e.Why = ErrTooOld
	case errno == syscall.ENODEV && op != ublkcmd.AddDev:
		e.Why = ErrNoDevice
	}
	return e
}
