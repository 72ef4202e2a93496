package sandbox

import (
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"vacate/internal/sys"
)

// Operations of io_uring that the daemon never makes (include/uapi/linux/io_uring.h).
const (
	ringConnect  = 16
	ringOpenAt   = 18
	ringUnlinkAt = 36
	ringSocket   = 45
)

const atCWD = -100 // AT_FDCWD

// ringOp makes one call through io_uring, of which seccomp sees nothing. addr is
// what the call is given an address of.
func ringOp(sqe sys.UringSQE, addr []byte) (int32, error) {
	if len(addr) > 0 {
		var pin runtime.Pinner
		defer pin.Unpin()
		pin.Pin(&addr[0])
		sqe.Addr = uint64(uintptr(unsafe.Pointer(&addr[0])))
	}
	var p sys.UringParams
	fd, errno := sys.SetupUring(1, &p)
	if errno != 0 {
		return 0, errno
	}
	defer sys.CloseFD(fd)
	rings, err := sys.MapUring(fd, sys.UringMapRings, 4096)
	if err != nil {
		return 0, err
	}
	defer sys.Unmap(rings)
	sqes, err := sys.MapUring(fd, sys.UringMapSQEs, 4096)
	if err != nil {
		return 0, err
	}
	defer sys.Unmap(sqes)
	*(*sys.UringSQE)(unsafe.Pointer(&sqes[0])) = sqe
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&rings[p.SQ.Tail])), 1)
	if errno := sys.EnterUring(fd, 1, 1, sys.UringGetEvents); errno != 0 {
		return 0, errno
	}
	res := (*sys.UringCQE)(unsafe.Pointer(&rings[p.CQEs()])).Res
	if res < 0 {
		return 0, syscall.Errno(-res)
	}
	return res, nil
}

func onPath(op uint8, path func(world) string) func(world, order) error {
	return func(w world, _ order) error {
		_, err := ringOp(sys.UringSQE{Opcode: op, FD: atCWD}, append([]byte(path(w)), 0))
		return err
	}
}

// ringDial connects to the socket of the test.
func ringDial(w world, _ order) error {
	fd, err := ringOp(sys.UringSQE{Opcode: ringSocket, FD: syscall.AF_UNIX, Off: syscall.SOCK_STREAM}, nil)
	if err != nil {
		return err
	}
	addr := append([]byte{syscall.AF_UNIX, 0}, filepath.Join(w.dir, "s")...)
	addr = append(addr, 0)
	_, err = ringOp(sys.UringSQE{Opcode: ringConnect, FD: fd, Off: uint64(len(addr))}, addr)
	return err
}

// abiSockets is the version of Landlock that keeps from sockets with a path.
const abiSockets = 9

// dialed is what must come of it in the engine: io_uring passes by seccomp, and
// older versions of Landlock know nothing of sockets. The decision record says so.
var dialed = func() string {
	if sys.LandlockABI() >= abiSockets {
		return access
	}
	return done
}()
