// Package blk holds the types that the layers of the data plane share, and
// nothing else: a layer is handed the [Device] below it, and is one.
//
// # How a request moves
//
//  1. The owner of a request fills in Op, Flags, Off, Len, Buf and Done, and
//     hands it, in a batch, to [Queue.Submit].
//  2. Each layer that must change the request makes children of its own, in
//     slots that it allocated when the queue was made, and submits those below.
//  3. When a child is complete, the layer below calls its Done. The layer does
//     what is left to do (decrypt, set a bit) and calls Done of its own parent.
//  4. So a completion arrives at the owner from within Submit or Reap, on the
//     goroutine that owns the queue, exactly once a request.
//
// # Buffers
//
// A request's buffer belongs to the layer below from Submit until Done is
// called. It is memory that never moves: an arena of package mem, or memory of
// a test that keeps it alive.
//
// # Rules for every implementation (the conformance suite in blk/blktest)
//
//	B1: Done is called exactly once a request, and only from Submit or Reap of
//	    the queue that the request was submitted to.
//	B2: Errno is 0 only if the whole request was carried out, and then N is Len.
//	    A short transfer is an error (EIO), never a success; N says how much.
//	B3: Submit and Reap may be called from within Done (no lock is held there).
//	B4: Reap(true) returns only when at least one completion was delivered or
//	    nothing is in flight.
//	B5: a failed request leaves the queue usable.
//	B6: no allocation a request on the good path.
//	B7: where the buffer of a request with the flag [Foreign] faults, the request
//	    ends with EFAULT, unless it fails otherwise. The layers stay as they are
//	    after any request that failed. Buffers that are not foreign do not fault;
//	    that would be the end of the process.
package blk

import (
	"fmt"
	"syscall"
)

// Units of the data plane.
const (
	SectorSize = 512  // unit of addressing in virtio, smallest logical block
	BlockSize  = 4096 // unit of encryption and of the block map
)

// MaxTransfer is the longest read or write, in bytes, that a layer must accept.
// Exports split what is longer; discards and write-zeroes have no such limit.
const MaxTransfer = 256 << 10

// MaxVolume is the largest volume, in bytes. It keeps offset arithmetic far
// from overflow.
const MaxVolume = 1 << 62

// An Op is what a request asks for.
type Op uint8

// The operations. OpDiscard and OpWriteZeroes carry no buffer; OpFlush carries
// neither buffer nor range.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
)

var opNames = [...]string{"read", "write", "flush", "discard", "write zeroes"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Flags change how a request is carried out.
type Flags uint8

const (
	// FUA asks that the write has reached the medium before it completes
	// (what that means is the drive's flush class; docs/ARCHITECTURE.md).
	FUA Flags = 1 << iota
	// NoHole asks that a write-zeroes leaves the range allocated. Vacate keeps
	// every extent of a lease allocated, so it changes nothing here.
	NoHole
	// Foreign says that Buf is memory of somebody else, a guest's: it changes at any
	// time, and touching it may fault. A layer that touches it makes that an EFAULT
	// of this request (rule B7), and of nothing else. The flag goes along with the
	// buffer, and not with a buffer of the layer's own. REQUIRES: the goroutine
	// that owns the queue runs with debug.SetPanicOnFault.
	Foreign
	// Continued says that this is a further part of a client's request, of which
	// another part stands for the request: limits and statistics count its bytes, and
	// nothing else. It changes nothing in how it is carried out.
	Continued
)

// A Completer is told when a request is complete.
type Completer interface {
	// Complete is called once, on the goroutine that owns the queue. The
	// request belongs to its owner again.
	Complete(r *Request)
}

// A Request is one operation on a device.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64     // bytes from the start of the device, 0 ≤ Off
	Len   int64     // bytes; for reads and writes len(Buf) ≤ MaxTransfer
	Buf   []byte    // reads and writes only
	Done  Completer // never nil

	// Results, set by the layer below before Done is called.
	Errno syscall.Errno // 0 when the whole request was carried out
	N     int64         // bytes carried out
}

// Finish sets the result of r and tells its owner: n bytes were carried out,
// and errno says why it was not all of them. A short n without errno is EIO.
func (r *Request) Finish(n int64, errno syscall.Errno) {
	if errno == 0 && n != r.Len {
		errno = syscall.EIO
	}
	r.N, r.Errno = n, errno
	r.Done.Complete(r)
}

// Err returns nil for a request that was carried out, else an [*Error].
func (r *Request) Err() error {
	if r.Errno == 0 {
		return nil
	}
	return &Error{Op: r.Op, Off: r.Off, Len: r.Len, N: r.N, Errno: r.Errno}
}

// InRange reports whether the request lies inside a device of size bytes and,
// for reads and writes, whether its buffer fits its length.
func (r *Request) InRange(size int64) bool {
	switch r.Op {
	case OpFlush:
		return true
	case OpRead, OpWrite:
		if int64(len(r.Buf)) != r.Len || r.Len > MaxTransfer {
			return false
		}
	}
	return r.Off >= 0 && r.Len > 0 && r.Off <= size && r.Len <= size-r.Off
}

// An Error is a request that failed. It unwraps to its errno.
type Error struct {
	Op          Op
	Off, Len, N int64 // bytes; N of Len were carried out
	Errno       syscall.Errno
}

func (e *Error) Error() string {
	return fmt.Sprintf("%v of %d bytes at %d: %v after %d bytes", e.Op, e.Len, e.Off, e.Errno, e.N)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Geometry describes a device.
type Geometry struct {
	Size     int64 // bytes
	Logical  int   // bytes: requests below this size or alignment are refused or emulated by the layer; 1 if any
	Physical int   // bytes: smallest write that needs no read
}

// A Device is a layer of the data plane, or what lies at its bottom.
type Device interface {
	// Geometry may be called from any goroutine, at any time.
	Geometry() Geometry

	// NewQueue makes a queue for at most depth requests in flight. It may be
	// called from any goroutine; the queue belongs to the goroutine that calls
	// Submit and Reap. The error names what could not be had (memory, most
	// often) and leaves nothing behind.
	NewQueue(depth int) (Queue, error)
}

// A Queue is one goroutine's way into a device.
type Queue interface {
	// Submit hands requests down. REQUIRES: at most the queue's depth of
	// requests in flight. The slice itself is not kept. A layer may leave it to
	// the next Reap to begin them: an owner with requests in flight calls Reap
	// before it waits for anything else.
	Submit(batch []*Request)

	// Reap delivers completions and returns how many requests it has made
	// progress with. With wait it blocks, at the queue's one declared wait
	// point, as rule B4 says.
	Reap(wait bool) int

	// Close frees the queue. REQUIRES: nothing in flight.
	Close() error
}
