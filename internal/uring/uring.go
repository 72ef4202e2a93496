// Package uring is a small wrapper around io_uring: reads, writes and flushes of
// one thread, submitted and completed in batches.
//
// # How a ring is used
//
//  1. [Ring.Read], [Ring.Write] and [Ring.Sync] fill in submissions. No system
//     call is made.
//  2. [Ring.Enter] hands all of them to the kernel and waits for a completion, in
//     one system call; or does either alone.
//  3. [Ring.Next] takes completions out, oldest first.
//
// # Ownership
//
// A ring belongs to one goroutine, which stays locked to its thread while
// something is in flight: the kernel posts a completion when the thread that has
// submitted enters it, and wakes no other.
//
// # Buffers
//
// A buffer belongs to the kernel from the submission to the completion. It does
// not move meanwhile, and the caller keeps it alive: the ring does not. Transfers
// to and from memory that [Ring.Register] has told of are cheaper.
//
// # What a killed process leaves
//
// Submissions that the kernel has accepted are carried out even when the process
// has ended, and each holds its file open until then. So that it does not hold it
// for longer, two things that make rings faster are left out: registered files,
// which stay open until the ring has been torn down, and IORING_SETUP_DEFER_TASKRUN,
// with which completions wait for that, too, up to 50 ms (io_ring_exit_work).
package uring

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"vacate/internal/sys"
)

// MaxEntries is the most submissions that a ring has room for.
const MaxEntries = 4096

// flags are what to try, best first. A kernel refuses those that it does not know
// with EINVAL.
var flags = []sys.UringFlags{sys.UringCoopTaskrun | sys.UringTaskrunFlag, 0}

// A Ring is a submission ring and a completion ring.
//
// Invariants:
//
//	R1: between sqHead and tail lie submissions that the kernel has not taken.
//	R2: at most Room() are filled, submitted or completed and not taken out, so
//	    the completion ring, twice as long, never overflows. The caller keeps it.
type Ring struct {
	fd int

	rings, sqeBytes []byte // the two mappings
	sqes            []sys.UringSQE
	cqes            []sys.UringCQE
	sqHead, cqTail  *uint32 // the kernel's
	sqTail, cqHead  *uint32 // ours
	sqFlags         *uint32 // nil if the kernel does not set them
	fixed           []byte  // registered
	tail, head      uint32  // what *sqTail and *cqHead hold, or will
}

// A Completion is what became of a submission: the bytes done, or an errno.
type Completion struct {
	ID    uint64
	N     int
	Errno syscall.Errno
}

// New makes a ring with room for at least entries submissions, 1 ≤ entries ≤
// [MaxEntries]. The error unwraps to the errno: EPERM, ENOSYS, ENOMEM and EMFILE
// are to be expected.
func New(entries int) (*Ring, error) {
	if entries < 1 || entries > MaxEntries {
		return nil, fmt.Errorf("making a ring of %d entries: %w", entries, syscall.EINVAL)
	}
	var last syscall.Errno
	for _, f := range flags {
		p := sys.UringParams{Flags: f}
		fd, errno := sys.SetupUring(uint32(entries), &p)
		if errno == 0 {
			return open(fd, &p)
		}
		if last = errno; errno != syscall.EINVAL {
			break
		}
	}
	return nil, sys.UringError(last)
}

// Probe returns nil if rings can be made, else why not.
func Probe() error {
	r, err := New(1)
	if err != nil {
		return err
	}
	return r.Close()
}

// open maps a new ring.
func open(fd int, p *sys.UringParams) (r *Ring, err error) {
	r = &Ring{fd: fd}
	defer func() {
		if err != nil {
			_ = r.Close() // it was never used
			r = nil
		}
	}()
	const need = sys.UringFeatSingleMmap | sys.UringFeatNoDrop | sys.UringFeatRWCurPos
	if p.Features&need != need {
		return r, fmt.Errorf("this kernel's io_uring is older than Linux 5.6: %w", syscall.ENOSYS)
	}
	const sqeSize, cqeSize = unsafe.Sizeof(sys.UringSQE{}), unsafe.Sizeof(sys.UringCQE{})
	size := max(int(p.SQArray())+4*int(p.SQEntries), int(p.CQEs())+int(cqeSize)*int(p.CQEntries))
	if r.rings, err = sys.MapUring(fd, sys.UringMapRings, size); err != nil {
		return r, fmt.Errorf("mapping a ring: %w", err)
	}
	if r.sqeBytes, err = sys.MapUring(fd, sys.UringMapSQEs, int(sqeSize)*int(p.SQEntries)); err != nil {
		return r, fmt.Errorf("mapping a ring's submissions: %w", err)
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail = word(p.SQ.Head), word(p.SQ.Tail)
	r.cqHead, r.cqTail = word(p.CQ.Head), word(p.CQ.Tail)
	if p.Flags&sys.UringTaskrunFlag != 0 {
		r.sqFlags = word(p.SQFlags())
	}
	r.sqes = unsafe.Slice((*sys.UringSQE)(unsafe.Pointer(&r.sqeBytes[0])), p.SQEntries)
	r.cqes = unsafe.Slice((*sys.UringCQE)(unsafe.Pointer(&r.rings[p.CQEs()])), p.CQEntries)
	r.tail, r.head = atomic.LoadUint32(r.sqTail), atomic.LoadUint32(r.cqHead)
	// Entry i of the submission ring is always submission i.
	array := unsafe.Slice(word(p.SQArray()), p.SQEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	return r, nil
}

// Room is the number of submissions that fit.
func (r *Ring) Room() int { return len(r.sqes) }

// FD is the ring's descriptor. It is readable when there are completions to take
// out: poll(2) waits for them, if what was filled in has been handed over.
func (r *Ring) FD() int32 { return int32(r.fd) }

// next returns the next free submission, cleared, or nil if the ring is full.
func (r *Ring) next() *sys.UringSQE {
	if r.Unsubmitted() == len(r.sqes) {
		return nil
	}
	s := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	*s = sys.UringSQE{}
	r.tail++
	return s
}

// Register tells the kernel of memory that buffers will lie in. It stays mapped
// until the ring is closed. An error (ENOMEM: over RLIMIT_MEMLOCK; EFAULT: it is
// not mapped, or may not be pinned) leaves the ring as it was. At most once.
func (r *Ring) Register(memory []byte) error {
	if err := sys.RegisterMemory(r.fd, memory); err != nil {
		return fmt.Errorf("registering %d bytes with a ring: %w", len(memory), err)
	}
	r.fixed = memory
	return nil
}

// registered reports whether all of p lies in memory that was registered.
func (r *Ring) registered(p []byte) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(r.fixed)))
	from := uintptr(unsafe.Pointer(unsafe.SliceData(p))) - start // huge if before it
	return len(p) <= len(r.fixed) && from <= uintptr(len(r.fixed)-len(p))
}

// Read fills in a read at off into p. Like Write and Sync it reports false if
// the ring is full: Enter makes room.
func (r *Ring) Read(id uint64, fd int, p []byte, off int64) bool {
	op := uint8(sys.UringOpRead)
	if r.registered(p) {
		op = sys.UringOpReadFixed
	}
	return r.transfer(op, id, fd, p, off, 0)
}

// Write fills in a write of p at off, with sync one that completes only when it
// is on the medium.
func (r *Ring) Write(id uint64, fd int, p []byte, off int64, sync bool) bool {
	var opFlags uint32
	if sync {
		opFlags = sys.UringDsync
	}
	op := uint8(sys.UringOpWrite)
	if r.registered(p) {
		op = sys.UringOpWriteFixed
	}
	return r.transfer(op, id, fd, p, off, opFlags)
}

func (r *Ring) transfer(op uint8, id uint64, fd int, p []byte, off int64, opFlags uint32) bool {
	s := r.next()
	if s == nil {
		return false
	}
	s.Opcode, s.FD, s.Off, s.OpFlags, s.UserData = op, int32(fd), uint64(off), opFlags, id
	s.Addr, s.Len = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), uint32(len(p))
	return true
}

// Sync fills in an fdatasync. It waits for writes that have completed before it
// was submitted, and for no others.
func (r *Ring) Sync(id uint64, fd int) bool {
	s := r.next()
	if s == nil {
		return false
	}
	s.Opcode, s.FD, s.OpFlags, s.UserData = sys.UringOpFsync, int32(fd), sys.UringFsyncDatasync, id
	return true
}

// Recv fills in a recv(2) that does not wait: EAGAIN says that nothing is there. p
// does not move until it is complete.
func (r *Ring) Recv(id uint64, fd int, p []byte) bool {
	return r.transfer(sys.UringOpRecv, id, fd, p, 0, sys.UringNow)
}

// Send fills in a sendmsg(2) that does not wait. The parcel is not changed until it
// is complete. A submission before it is carried out before it, if neither waits.
func (r *Ring) Send(id uint64, fd int, c *sys.Parcel) bool {
	s := r.next()
	if s == nil {
		return false
	}
	s.Opcode, s.FD, s.OpFlags, s.UserData = sys.UringOpSendmsg, int32(fd), sys.UringNow, id
	s.Addr, s.Len = uint64(c.Address()), 1
	return true
}

// Command fills in a command to the driver of a device, with its number and what it
// carries. It completes when the driver says so, which may be never before the device
// is gone.
func (r *Ring) Command(id uint64, fd int, op uint32, cmd [16]byte) bool {
	s := r.next()
	if s == nil {
		return false
	}
	s.Opcode, s.FD, s.Off, s.Cmd, s.UserData = sys.UringOpCommand, int32(fd), uint64(op), cmd, id
	return true
}

// Unsubmitted is the number of submissions that the kernel has not taken (R1).
func (r *Ring) Unsubmitted() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// TakeBack takes the newest submission that the kernel has not taken out of the
// ring again, and returns its id. REQUIRES: Unsubmitted() > 0.
func (r *Ring) TakeBack() uint64 {
	r.tail--
	atomic.StoreUint32(r.sqTail, r.tail)
	return r.sqes[r.tail&uint32(len(r.sqes)-1)].UserData
}

// Enter hands what was filled in to the kernel and, with wait, returns only when
// there is a completion to take out. It makes no system call if there is nothing
// to hand over, nothing to move and nothing to wait for.
//
// REQUIRES: with wait, something is in flight or filled in.
//
// An error leaves what the kernel has not taken in the ring. EAGAIN says that
// the kernel lacks memory for requests.
func (r *Ring) Enter(wait bool) syscall.Errno {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		n := uint32(r.Unsubmitted())
		var need, how uint32
		switch empty := r.empty(); {
		case wait && empty:
			need, how = 1, sys.UringGetEvents
		case empty && r.Deferred():
			how = sys.UringGetEvents
		case n == 0:
			return 0
		}
		switch errno := sys.EnterUring(r.fd, n, need, how); {
		case errno == syscall.EINTR: // a signal; what was taken before, sqHead says
		case errno != 0:
			return errno
		case need == 0 && r.Unsubmitted() == 0:
			return 0
		}
	}
}

// empty reports whether no completion has been posted that was not taken out.
func (r *Ring) empty() bool { return r.head == atomic.LoadUint32(r.cqTail) }

// Ready is how many completions [Ring.Next] will give without another Enter; more
// may come meanwhile.
func (r *Ring) Ready() int { return int(atomic.LoadUint32(r.cqTail) - r.head) }

// Deferred reports whether completions wait for this thread to fetch them. On
// kernels that do not tell, none do: they come by themselves.
func (r *Ring) Deferred() bool {
	return r.sqFlags != nil && atomic.LoadUint32(r.sqFlags)&sys.UringSQTaskrun != 0
}

// Next takes a completion out.
func (r *Ring) Next() (Completion, bool) {
	if r.empty() {
		return Completion{}, false
	}
	e := &r.cqes[r.head&uint32(len(r.cqes)-1)]
	c := Completion{ID: e.UserData, N: int(e.Res)}
	if e.Res < 0 {
		c.N, c.Errno = 0, syscall.Errno(-e.Res)
	}
	r.head++
	atomic.StoreUint32(r.cqHead, r.head)
	return c, true
}

// Close gives the ring back, from any thread. REQUIRES: nothing in flight.
func (r *Ring) Close() (err error) {
	for _, b := range []*[]byte{&r.sqeBytes, &r.rings} {
		if *b != nil {
			if e := sys.Unmap(*b); err == nil {
				err = e
			}
			*b = nil
		}
	}
	if r.fd >= 0 {
		if e := sys.CloseFD(r.fd); err == nil {
			err = e
		}
		r.fd = -1
	}
	if err != nil {
		return fmt.Errorf("closing a ring: %w", err)
	}
	return nil
}
