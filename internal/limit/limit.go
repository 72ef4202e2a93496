// Package limit says how fast a volume may be used: its limits, in the form in
// which control keeps them and tells them to the engine, which enforces them.
package limit

import (
	"errors"
	"fmt"
)

// Limits are what a volume grants in a second. The zero Limits grant everything.
//
// Reads and writes count, as one request for each 256 KiB. A discard or
// write-zeroes is one request of no bytes, a flush is none. A burst is how much
// may come at once after a pause; 0 is what a second grants, of bytes at least
// 256 KiB.
type Limits struct {
	IOPS       uint64 `json:"iops,omitempty"`       // requests a second; 0: unlimited
	IOPSBurst  uint64 `json:"iopsBurst,omitempty"`  // requests
	Bytes      uint64 `json:"bytes,omitempty"`      // bytes a second; 0: unlimited
	BytesBurst uint64 `json:"bytesBurst,omitempty"` // bytes
}

// Bounds. They fit the fields of the volatile lease record.
const (
	MaxIOPS  = 1<<32 - 1 // of IOPS and IOPSBurst
	MinBytes = 4096      // of Bytes and BytesBurst, where they are not 0: one block
	MaxBytes = 1 << 50   // of Bytes and BytesBurst
)

// Check reports everything that is wrong with l, in words for people.
func (l Limits) Check() error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, v := range []struct {
		what string
		n    uint64
	}{{"a limit", l.IOPS}, {"a burst", l.IOPSBurst}} {
		if v.n > MaxIOPS {
			refuse("%s of %d requests is over the largest, %d", v.what, v.n, uint64(MaxIOPS))
		}
	}
	for _, v := range []struct {
		what string
		n    uint64
	}{{"a bandwidth", l.Bytes}, {"a bandwidth's burst", l.BytesBurst}} {
		switch {
		case v.n != 0 && v.n < MinBytes:
			refuse("%s of %d bytes is under one block, %d bytes", v.what, v.n, MinBytes)
		case v.n > MaxBytes:
			refuse("%s of %d bytes is over the largest, 2^50", v.what, v.n)
		}
	}
	if l.IOPSBurst != 0 && l.IOPS == 0 {
		refuse("a burst of requests means nothing without a limit of requests a second")
	}
	if l.BytesBurst != 0 && l.Bytes == 0 {
		refuse("a burst of bytes means nothing without a bandwidth")
	}
	return errors.Join(errs...)
}
