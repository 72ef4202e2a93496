package node

import (
	"context"
	"errors"
	"os"

	"vacate/internal/ipc"
)

// An Engine is the data plane, as node calls it. An error that is or wraps an
// [*ipc.RemoteError] is an answer: the engine refused, and nothing was done. Any
// other error leaves open whether it was done.
//
// What node relies on:
//
//	E1: before an engine answers Hello to a new control, every call of the last
//	    one has ended; before it answers at all, every call on the engine whose
//	    place it took.
//	E2: CloseLease and Drain may be asked again, also of the engine that took the
//	    place of another. Of a lease that has gone, and whose slot has no other,
//	    CloseLease returns the same erasure; of one that neither this engine nor
//	    one before it had it returns CodeNotFound, and then no key of it exists in
//	    the memory of this keeper.
//	E3: CloseLease returns when the key was overwritten and read back. It never
//	    waits for a device.
//	    That holds for a lease that waits for its drives' fence, too.
//	E4: OpenDrive of a drive that this engine has open, or took over, checks the
//	    epoch and writes the new one all the same.
//	E5: an engine that answers OpenDrive without error holds the fence: no I/O of
//	    an earlier engine is in flight to that drive, or will be.
//	E6: an engine that took the place of another has in Leases all that the other
//	    had. If it is the same keeper's and has none of them, the keeper destroyed
//	    every key.
//	E7: after LimitLease a lease is held to these limits, by this engine and by
//	    those that take its place. It never waits for a device.
//	E8: after ResizeLease a lease has this size, in this engine and in those that
//	    take its place. It waits for what is in flight. One that was cut off has left
//	    the old size or the new one, which Leases tells.
//	E9: a lease that is opened with Hold is not served before ServeLease, which may
//	    be asked again. An engine that takes over has destroyed the key of a lease
//	    that was not served, and has it no more.
type Engine interface {
	Hello(ctx context.Context) (ipc.Hello, error)
	Inspect(ctx context.Context, req ipc.InspectRequest) (ipc.Inspection, error)
	Enroll(ctx context.Context, req ipc.EnrollRequest) (ipc.DriveInfo, error)
	OpenDrive(ctx context.Context, req ipc.DriveOpenRequest) (ipc.DriveInfo, error)
	CloseDrive(ctx context.Context, req ipc.DriveCloseRequest) error
	// OpenLease is given the listening sockets of the exports, in the order of
	// [lease.Exports.Kinds]. They stay the caller's.
	OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, listeners ...*os.File) (ipc.LeaseOpened, error)
	ServeLease(ctx context.Context, id string) error
	ReleaseLease(ctx context.Context, req ipc.LeaseReleaseRequest) (ipc.LeaseReleased, error)
	LimitLease(ctx context.Context, req ipc.LeaseLimitRequest) error
	ResizeLease(ctx context.Context, req ipc.LeaseResizeRequest) error
	CloseLease(ctx context.Context, id string) (ipc.Erasure, error)
	Drain(ctx context.Context, id string) error
	Leases(ctx context.Context) (ipc.LeaseList, error)
	// Losses waits until the engine has more to tell than when it said seen; 0: now.
	Losses(ctx context.Context, seen uint64) (ipc.Losses, error)
	Stats(ctx context.Context) (ipc.Stats, error)
}

// Sockets makes the places where clients reach a lease.
type Sockets interface {
	// Make makes the lease's folder and listens on a socket in it for each kind of
	// export, that only uid, root and the daemon can connect to. The caller closes
	// the listeners, which are in the order of kinds.
	Make(id string, uid uint32, kinds ...string) ([]*os.File, error)
	// Path is where the lease's socket for a kind of export is, or would be.
	Path(id, kind string) string
	// Remove removes sockets and folder. What is not there is removed.
	Remove(id string) error
	// Clean removes the folders of all leases that keep does not name.
	Clean(keep func(id string) bool) error
}

// codeOf is the code of the engine's answer, or empty if there was none.
func codeOf(err error) string {
	var re *ipc.RemoteError
	if errors.As(err, &re) {
		return re.Code
	}
	return ""
}
