package volume

import (
	"errors"
	"fmt"

	"vacate/internal/sys"
)

// Limits bound what a volume's clients may ask for, over all its queues. Reads
// and writes count, each as one request and its bytes; discards and
// write-zeroes count as one request and no bytes; flushes do not count. Of what a
// client asked for in one, further parts count their bytes ([blk.Continued]). What is
// over a limit waits: nothing fails.
type Limits struct {
	IOPS       uint64 // requests a second; 0: unlimited
	IOPSBurst  uint64 // requests at once after a pause; 0: one second's worth
	Bytes      uint64 // bytes a second; 0: unlimited
	BytesBurst uint64 // bytes at once after a pause; 0: one second's worth, at least blk.MaxTransfer
}

// Validate reports every fault of the limits at once.
func (l Limits) Validate() error {
	var errs []error
	if l.IOPS == 0 && l.IOPSBurst != 0 {
		errs = append(errs, fmt.Errorf("a burst of %d requests without a limit of requests a second: give both, or neither", l.IOPSBurst))
	}
	if l.Bytes == 0 && l.BytesBurst != 0 {
		errs = append(errs, fmt.Errorf("a burst of %d bytes without a limit of bytes a second: give both, or neither", l.BytesBurst))
	}
	return errors.Join(errs...)
}

// SetLimits changes the limits, also for requests that wait already. What was
// used of the burst stays used. A burst without its rate means nothing. It may
// be called from any goroutine, at any time.
func (v *Volume) SetLimits(l Limits) {
	v.mu.Lock()
	old := v.limiter.Load()
	if old == nil || old.limits != l {
		v.limiter.Store(newLimiter(l, old, sys.MonotonicNs()))
	}
	v.mu.Unlock()
	v.excl.ring() // who waits until it is due has to look
}

// Limits returns the limits. It may be called from any goroutine, at any time.
func (v *Volume) Limits() Limits {
	if l := v.limiter.Load(); l != nil {
		return l.limits
	}
	return Limits{}
}
