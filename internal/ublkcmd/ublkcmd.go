// Package ublkcmd is the kernel's interface of ublk, block devices that a process
// serves, as far as Vacate uses it: include/uapi/linux/ublk_cmd.h, and the kernel's
// Documentation/block/ublk.rst. All integers are in the machine's byte order.
//
// Who makes and ends devices sends control commands to /dev/ublk-control (package
// ublkctl). Who serves one opens its character device /dev/ublkcN, which one process
// at a time can, and sends I/O commands there (package export/ublk).
package ublkcmd

import "unsafe"

// An Op is the number of a command, encoded as that of an ioctl (since Linux 6.4).
type Op uint32

func ioctl(dir, nr, size uint32) Op { return Op(dir<<30 | size<<16 | uint32('u')<<8 | nr) }

const (
	read      = 2
	readWrite = 3
)

// Control commands. Each carries a [Control].
var (
	GetDevInfo    = ioctl(read, 0x02, 32)
	AddDev        = ioctl(readWrite, 0x04, 32)
	DelDev        = ioctl(readWrite, 0x05, 32)
	StartDev      = ioctl(readWrite, 0x06, 32)
	StopDev       = ioctl(readWrite, 0x07, 32)
	SetParams     = ioctl(readWrite, 0x08, 32)
	GetParams     = ioctl(read, 0x09, 32)
	BeginRecovery = ioctl(readWrite, 0x10, 32)
	EndRecovery   = ioctl(readWrite, 0x11, 32)
	GetFeatures   = ioctl(read, 0x13, 32) // since Linux 6.5
	DelDevAsync   = ioctl(read, 0x14, 32) // since Linux 6.9
	UpdateSize    = ioctl(readWrite, 0x15, 32)
)

// I/O commands. Each carries an [IO].
var (
	FetchReq          = ioctl(readWrite, 0x20, 16)
	CommitAndFetchReq = ioctl(readWrite, 0x21, 16)
)

// Results of an I/O command, as completions have them.
const (
	ResOK    = 0
	ResAbort = -19 // ENODEV: the device is being stopped, the tag comes no more
)

// Flags of a device, and of the driver's features.
const (
	FlagUserRecovery        = 1 << 3
	FlagUserRecoveryReissue = 1 << 4
	FlagIoctlEncode         = 1 << 6
	FlagUserCopy            = 1 << 7
	FlagUpdateSize          = 1 << 10 // feature: UpdateSize is known
)

// States of a device.
const (
	StateDead     = 0 // not started yet, or stopped
	StateLive     = 1
	StateQuiesced = 2 // its server is gone, requests wait for the next
)

// MaxDepth is the most requests that a queue may have in flight.
const MaxDepth = 4096

// Control is what a control command carries (struct ublksrv_ctrl_cmd).
type Control struct {
	DevID   uint32
	QueueID uint16 // 0xffff where no queue is meant
	Len     uint16 // bytes at Addr
	Addr    uint64
	Data    uint64
	_       [8]byte
}

// DevInfo describes a device (struct ublksrv_ctrl_dev_info).
type DevInfo struct {
	Queues    uint16
	Depth     uint16
	State     uint16
	_         uint16
	MaxIO     uint32 // bytes
	DevID     uint32
	ServerPID int32
	_         uint32
	Flags     uint64
	Mark      uint64 // ublksrv_flags: the server's own, which the driver keeps and does not read
	OwnerUID  uint32
	OwnerGID  uint32
	_         [2]uint64
}

// Attributes of [Basic].
const (
	AttrReadOnly      = 1 << 0
	AttrVolatileCache = 1 << 2
	AttrFUA           = 1 << 3
)

// Types of parameters, as bits of [Params].
const (
	ParamBasic   = 1 << 0
	ParamDiscard = 1 << 1
)

// Params are a device's (struct ublk_params, its first two parts).
type Params struct {
	Len     uint32 // bytes of this struct
	Types   uint32
	Basic   Basic
	Discard Discard
}

// Basic is struct ublk_param_basic. Sectors are of 512 bytes.
type Basic struct {
	Attrs         uint32
	LogicalShift  uint8 // 9 or 12
	PhysicalShift uint8
	IOOptShift    uint8
	IOMinShift    uint8
	MaxSectors    uint32 // of one request
	ChunkSectors  uint32
	DevSectors    uint64
	VirtBoundary  uint64
}

// Discard is struct ublk_param_discard.
type Discard struct {
	Alignment             uint32 // bytes
	Granularity           uint32 // bytes
	MaxDiscardSectors     uint32
	MaxWriteZeroesSectors uint32
	MaxSegments           uint16
	_                     uint16
}

// Operations of a request.
const (
	OpRead        = 0
	OpWrite       = 1
	OpFlush       = 2
	OpDiscard     = 3
	OpWriteZeroes = 5
)

// Flags of a request.
const (
	ReqFUA     = 1 << 13
	ReqNoUnmap = 1 << 15
)

// A Desc is a request (struct ublksrv_io_desc). The driver writes it, and it may be
// read after the tag's command has completed.
type Desc struct {
	OpFlags uint32 // operation: bits 0 to 7, flags: 8 to 31
	Sectors uint32 // of 512 bytes
	Start   uint64 // sector
	Addr    uint64 // of the server's buffer; 0 with FlagUserCopy
}

// Op is the operation.
func (d Desc) Op() uint8 { return uint8(d.OpFlags) }

// Flags are the request's flags.
func (d Desc) Flags() uint32 { return d.OpFlags >> 8 << 8 }

// IO is what an I/O command carries (struct ublksrv_io_cmd).
type IO struct {
	Queue  uint16
	Tag    uint16
	Result int32  // of a commit: bytes done, or a negative errno
	Addr   uint64 // 0 with FlagUserCopy
}

// DescBytes is how much of a character device is mapped for each queue's
// descriptors of at most depth requests, before it is rounded up to pages.
const DescBytes = unsafe.Sizeof(Desc{})

// DescOffset is where the descriptors of a queue lie in a character device.
func DescOffset(queue int, pageSize int) int64 {
	size := (MaxDepth*int(DescBytes) + pageSize - 1) / pageSize * pageSize
	return int64(queue) * int64(size)
}

// BufOffset is where the data of a request lies in a character device, with
// FlagUserCopy: what is written there a read answers, what a write wants written is
// read there.
func BufOffset(queue, tag uint16) int64 {
	return 0x80000000 + int64(queue)<<41 + int64(tag)<<25
}
