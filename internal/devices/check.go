package devices

import (
	"fmt"
	"path/filepath"

	"vacate/internal/ipc"
)

// Bounds of requests.
const (
	maxSize   = 1 << 60 // bytes
	maxSocket = 107     // bytes of a path, unix(7)
)

// check refuses what no daemon of ours asks for (CodeInvalid): it comes before any name
// becomes part of a path, and any number of a command.
func check(request any) error {
	var lease string
	bytes, block := int64(4096), 4096
	switch r := request.(type) {
	case *ipc.DeviceMakeRequest:
		lease, bytes, block = r.Lease, r.SizeBytes, r.LogicalBlock
		if r.Socket != "" && (!filepath.IsAbs(r.Socket) || len(r.Socket) > maxSocket) {
			return refuse(ipc.CodeInvalid, "%q is not the path of a socket", r.Socket)
		}
		if r.UID == ^uint32(0) { // chown(2) would leave the owner as it is
			return refuse(ipc.CodeInvalid, "%d is nobody's uid", r.UID)
		}
	case *ipc.DeviceStartRequest:
		lease = r.Lease
		if r.PID <= 0 || r.PID > 1<<22 {
			return refuse(ipc.CodeInvalid, "%d is no process", r.PID)
		}
	case *ipc.DeviceRemoveRequest:
		lease = r.Lease
	case *ipc.DeviceResizeRequest:
		lease, bytes, block = r.Lease, r.SizeBytes, 512
	default:
		panic(fmt.Sprintf("devices: a request of type %T", request))
	}
	switch {
	case !leaseID(lease):
		return refuse(ipc.CodeInvalid, "%q is no lease: 16 characters, a-z and 2-7", lease)
	case block != 512 && block != 4096:
		return refuse(ipc.CodeInvalid, "logical blocks of %d bytes: 512 or 4096", block)
	case bytes <= 0 || bytes > maxSize || bytes%int64(block) != 0:
		return refuse(ipc.CodeInvalid, "a device of %d bytes, with blocks of %d", bytes, block)
	}
	return nil
}
