package virtq

import (
	"fmt"
	"syscall"
)

// recovered makes of what recover has returned an error, if it is a fault on an
// address that is ours to touch (debug.SetPanicOnFault). It wraps [ErrRing] and
// EFAULT. What else panics goes on.
func recovered(p any, ours func(addr uintptr) bool) error {
	if p == nil {
		return nil
	}
	fault, ok := p.(interface{ Addr() uintptr })
	if !ok || !ours(fault.Addr()) {
		panic(p)
	}
	return fmt.Errorf("%w: its memory cannot be touched: %w", ErrRing, syscall.EFAULT)
}

// touches reports whether an address of this process is one that the ring touches.
func (r *Ring) touches(addr uintptr) bool {
	return r.memory.holds(addr) || r.inflight != nil && within(addr, r.inflight.mem) || r.log != nil && within(addr, r.log.mem)
}

// caught makes a fault the end of the ring. It is deferred by all that touches
// shared memory.
func (r *Ring) caught(err *error) {
	if p := recover(); p != nil {
		r.gone = true
		*err = r.fail(recovered(p, r.touches))
	}
}

// fail breaks the ring for good.
func (r *Ring) fail(err error) error {
	if r.broken == nil {
		r.broken = err
	}
	return r.broken
}
