package sys

import "golang.org/x/sys/unix"

// MonotonicNs returns CLOCK_MONOTONIC in nanoseconds: the clock of ppoll's and
// io_uring's time-outs, which stands still while the machine sleeps.
func MonotonicNs() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("sys: clock_gettime(CLOCK_MONOTONIC): " + err.Error()) // clock_gettime(2): it exists everywhere
	}
	return ts.Nano()
}
