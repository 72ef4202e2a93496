// Package ublkctl makes, starts and removes ublk devices: the control commands of
// package ublkcmd, which need CAP_SYS_ADMIN. Who serves a device opens its character
// device (export/ublk).
//
// A [Control] belongs to one goroutine, which stays locked to its thread: a command is
// done when its method returns. [Control.Start] and [Control.EndRecovery] return only
// when the server has fetched every tag of every queue, [Control.Stop] only when every
// request has been answered: a server that does neither keeps them for ever.
package ublkctl

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
	"vacate/internal/uring"
)

// Where the kernel has the driver.
const (
	ControlPath = "/dev/ublk-control"
	classPath   = "/sys/class/ublk-char"
	maxPath     = "/sys/module/ublk_drv/parameters/ublks_max"
)

// wanted are the flags that every device has.
const wanted = ublkcmd.FlagUserRecovery | ublkcmd.FlagUserRecoveryReissue | ublkcmd.FlagIoctlEncode | ublkcmd.FlagUserCopy

// noDevice is the id where a command is about no device, or a new one.
const noDevice = -1

// Info describes a device.
type Info struct {
	ID       int // of a new one: -1, the kernel chooses
	Queues   int
	Depth    int // requests in flight of one queue
	MaxIO    int // bytes
	State    int // ublkcmd.StateDead, …
	PID      int // of the server; 0 before it is started
	Flags    uint64
	Mark     uint64 // the maker's own, kept by the kernel
	UID, GID uint32 // of the maker
}

// Features are what the kernel's driver can do.
type Features struct {
	Bits       uint64
	UpdateSize bool // [Control.Resize]
}

// A Control sends control commands.
type Control struct {
	dev      *os.File
	fd       int
	ring     *uring.Big
	buf      []byte // outside Go's heap: the kernel reads and writes it
	features Features
}

// Open opens the driver, and asks what it can do. Its errors are [*Error]; ErrNoDriver,
// ErrNoPermission and ErrTooOld are to be expected.
func Open() (c *Control, err error) {
	dev, err := os.OpenFile(ControlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, openError(err)
	}
	c = &Control{dev: dev}
	defer func() {
		if err != nil {
			_ = c.Close() // nothing was done with it
			c = nil
		}
	}()
	if c.fd, err = sys.Descriptor(dev); err != nil {
		return c, err
	}
	if c.buf, err = sys.MapAnonymous(os.Getpagesize()); err != nil {
		return c, err
	}
	if c.ring, err = uring.NewBig(); err != nil {
		return c, ringError(err)
	}
	c.features, err = c.ask()
	return c, err
}

// Close gives up the driver. Devices stay.
func (c *Control) Close() (err error) {
	if c.ring != nil {
		err = c.ring.Close()
	}
	if c.buf != nil {
		err = errors.Join(err, sys.Unmap(c.buf))
	}
	return errors.Join(err, c.dev.Close())
}

// Features is what the driver can do.
func (c *Control) Features() Features { return c.features }

func (c *Control) ask() (f Features, err error) {
	clear(c.buf[:8])
	if err := c.command("asking what it can do", noDevice, ublkcmd.GetFeatures, 8, 0); err != nil {
		return f, err
	}
	f.Bits = *(*uint64)(unsafe.Pointer(unsafe.SliceData(c.buf)))
	f.UpdateSize = f.Bits&ublkcmd.FlagUpdateSize != 0
	if f.Bits&wanted != wanted {
		return f, &Error{Op: "asking what it can do", ID: noDevice, Errno: syscall.EOPNOTSUPP, Why: ErrTooOld}
	}
	return f, nil
}

// command sends a command whose data, if any, lies in the first n bytes of buf.
func (c *Control) command(what string, id int, op ublkcmd.Op, n int, data uint64) error {
	cmd := ublkcmd.Control{DevID: uint32(int32(id)), QueueID: 0xffff, Len: uint16(n), Data: data}
	if n > 0 {
		cmd.Addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(c.buf))))
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&cmd)), unsafe.Sizeof(cmd))
	if _, errno := c.ring.Command(c.fd, uint32(op), b); errno != 0 {
		return commandError(what, id, op, errno)
	}
	return nil
}

// put lays what a command carries into buf.
func put[T any](c *Control, v T) (n int) {
	*(*T)(unsafe.Pointer(unsafe.SliceData(c.buf))) = v
	return int(unsafe.Sizeof(v))
}

// get is what a command has left there.
func get[T any](c *Control) T { return *(*T)(unsafe.Pointer(unsafe.SliceData(c.buf))) }

// Add makes a device, which nobody can use before it is started: ID (-1: any), Queues,
// Depth, MaxIO and Mark are what is wanted. It returns what the kernel made of it.
// ErrFull: there are as many as the driver's ublks_max.
func (c *Control) Add(i Info) (Info, error) {
	n := put(c, ublkcmd.DevInfo{
		Queues: uint16(i.Queues), Depth: uint16(i.Depth), MaxIO: uint32(i.MaxIO),
		DevID: uint32(int32(i.ID)), Flags: wanted, Mark: i.Mark,
	})
	if err := c.command("making one", i.ID, ublkcmd.AddDev, n, 0); err != nil {
		return Info{}, err
	}
	made := infoOf(get[ublkcmd.DevInfo](c))
	if made.Flags&wanted != wanted {
		err := &Error{Op: "making one", ID: made.ID, Errno: syscall.EOPNOTSUPP, Why: ErrTooOld}
		return Info{}, errors.Join(err, c.Delete(made.ID))
	}
	return made, nil
}

// Info describes a device. ErrNoDevice: there is none of that id.
func (c *Control) Info(id int) (Info, error) {
	n := put(c, ublkcmd.DevInfo{})
	if err := c.command("looking at it", id, ublkcmd.GetDevInfo, n, 0); err != nil {
		return Info{}, err
	}
	return infoOf(get[ublkcmd.DevInfo](c)), nil
}

func infoOf(d ublkcmd.DevInfo) Info {
	return Info{
		ID: int(int32(d.DevID)), Queues: int(d.Queues), Depth: int(d.Depth), MaxIO: int(d.MaxIO),
		State: int(d.State), PID: max(0, int(d.ServerPID)), Flags: d.Flags, Mark: d.Mark, UID: d.OwnerUID, GID: d.OwnerGID,
	}
}

// SetParams says what a device is like. REQUIRES: it was not started yet.
func (c *Control) SetParams(id int, p ublkcmd.Params) error {
	p.Len = uint32(unsafe.Sizeof(p))
	return c.command("saying what it is like", id, ublkcmd.SetParams, put(c, p), 0)
}

// Params is what was said.
func (c *Control) Params(id int) (ublkcmd.Params, error) {
	n := int(unsafe.Sizeof(ublkcmd.Params{}))
	put(c, ublkcmd.Params{Len: uint32(n)})
	if err := c.command("asking what it is like", id, ublkcmd.GetParams, n, 0); err != nil {
		return ublkcmd.Params{}, err
	}
	return get[ublkcmd.Params](c), nil
}

// Start has the kernel use a device, which the process pid serves. It waits for that.
func (c *Control) Start(id, pid int) error {
	return c.command("starting it", id, ublkcmd.StartDev, 0, uint64(pid))
}

// Stop ends the use of a device: whoever has it open gets errors.
func (c *Control) Stop(id int) error { return c.command("stopping it", id, ublkcmd.StopDev, 0, 0) }

// Delete removes a device. It waits for nobody who has the character device open, but
// before Linux 6.9.
func (c *Control) Delete(id int) error {
	err := c.command("removing it", id, ublkcmd.DelDevAsync, 0, 0)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, notSupported) {
		err = c.command("removing it", id, ublkcmd.DelDev, 0, 0)
	}
	return err
}

// BeginRecovery readies a device that has lost its server for the next. EBUSY: the
// kernel has not noticed yet.
func (c *Control) BeginRecovery(id int) error {
	return c.command("giving it a new server", id, ublkcmd.BeginRecovery, 0, 0)
}

// EndRecovery is Start, of a device that the process pid has taken over.
func (c *Control) EndRecovery(id, pid int) error {
	return c.command("going on with it", id, ublkcmd.EndRecovery, 0, uint64(pid))
}

// Resize tells the kernel a device's new size. ErrTooOld: before Linux 6.16.
func (c *Control) Resize(id int, bytes int64) error {
	if !c.features.UpdateSize {
		return &Error{Op: "resizing it", ID: id, Errno: syscall.EOPNOTSUPP, Why: ErrTooOld}
	}
	return c.command("resizing it", id, ublkcmd.UpdateSize, 0, uint64(bytes)/512)
}

// List is the ids of all devices that were not removed, anybody's.
func (c *Control) List() ([]int, error) { return list(classPath) }

func list(class string) (ids []int, err error) {
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		n, found := strings.CutPrefix(e.Name(), "ublkc")
		id, err := strconv.Atoi(n)
		if found && err == nil && strconv.Itoa(id) == n && id >= 0 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// OpenServer opens a device's character device, as who serves it. EBUSY: somebody
// serves it.
func (c *Control) OpenServer(id int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join("/dev", "ublkc"+strconv.Itoa(id)), os.O_RDWR, 0)
	if err != nil {
		return nil, nodeError(id, err)
	}
	return f, nil
}

// AtLeast raises how many devices the driver lets there be.
func AtLeast(devices int) error { return atLeast(maxPath, devices) }

func atLeast(path string, devices int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= devices {
		return nil
	}
	return os.WriteFile(path, []byte(strconv.Itoa(devices)), 0)
}
