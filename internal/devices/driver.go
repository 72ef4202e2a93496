package devices

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vacate/internal/ipc"
)

// A driver makes block devices with one of the kernel's drivers.
//
// What is asked of one lease comes one call after another; of different leases calls
// come at once. Requests have been checked: a lease is 16 characters a-z and 2-7,
// sizes and blocks are in bounds. Errors say what happened to which device and what
// to do; those that callers branch on wrap a [*ipc.RemoteError].
//
// A driver has no state but the kernel's: who it was before it was started anew finds
// its devices by their mark, which holds the run folder's and the lease's name.
type driver interface {
	// kind is ipc.DeviceUblk or ipc.DeviceNBD.
	kind() string
	// make makes a lease's device, or readies the one that has lost its server for
	// the next. The file, nil with nbd, is the caller's.
	make(ctx context.Context, r *ipc.DeviceMakeRequest) (ipc.DeviceMade, *os.File, error)
	// served says that a server has the device, which another process of this kind may
	// have made, and who may open it. start follows.
	served(ctx context.Context, lease string, uid uint32) error
	// start has the kernel use the device: when it returns, the node (/dev/ublkb0)
	// is there, and belongs to the uid that make named. The link is the caller's work.
	start(ctx context.Context, lease string, pid int) (node string, err error)
	// remove takes the device away, and without force not one that is in use
	// (CodeBusy; see usage).
	remove(ctx context.Context, lease string, force bool) error
	// resize tells the kernel the new size (CodeUnsupported).
	resize(ctx context.Context, lease string, bytes int64) error
	// list is every device of ours whose lease is known, in any order. Path is left empty.
	list(ctx context.Context) ([]ipc.Device, error)
	// clear removes all devices of this run folder by force, also those whose lease
	// is not known. It goes on behind an error.
	clear(ctx context.Context) error
	// close gives up what the driver holds of the kernel; devices stay.
	close() error
}

// An opener opens a driver. With load, its kernel module is loaded if it is not there.
// An error says what is missing and what to do: it is shown to people.
type opener struct {
	kind string
	open func(c *Config, load bool) (driver, error)
}

// openers are all there are, the best first.
var openers = []opener{
	{ipc.DeviceUblk, openUblk},
	{ipc.DeviceNBD, openNBD},
}

// errNoDevice is wrapped by what a driver answers for a lease that has no device of
// its kind: another kind is asked then.
var errNoDevice = errors.New("it has no block device")

// refuse is an error that callers branch on.
func refuse(code, format string, args ...any) error {
	return &ipc.RemoteError{Code: code, Text: fmt.Sprintf(format, args...)}
}
