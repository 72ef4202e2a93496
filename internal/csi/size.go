package csi

import (
	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vacate/internal/lease"
)

// sizeOf is the size in bytes of a volume of at least least bytes that is wanted in a
// range: what is required, or else fallback, rounded up to whole blocks.
func sizeOf(r *spec.CapacityRange, least, fallback int64) (int64, error) {
	want, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case want < 0 || limit < 0:
		return 0, invalid("capacity_range: %d to %d bytes: a size is not negative", want, limit)
	case limit > 0 && want > limit:
		return 0, invalid("capacity_range: %d bytes are required, and %d are the limit", want, limit)
	case want > lease.MaxBytes:
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: %d bytes are over the largest volume, 2^62", want)
	}
	if want == 0 {
		if want = fallback; limit > 0 {
			want = min(want, limit-limit%lease.BlockBytes)
		}
	}
	want = max(want, least)
	want = (want + lease.BlockBytes - 1) / lease.BlockBytes * lease.BlockBytes
	if limit > 0 && want > limit {
		return 0, status.Errorf(codes.OutOfRange, "capacity_range: the smallest volume has %d bytes, and the limit is %d", want, limit)
	}
	return want, nil
}

// within reports whether a volume of size bytes is in a range.
func within(size int64, r *spec.CapacityRange) bool {
	return size >= r.GetRequiredBytes() && (r.GetLimitBytes() == 0 || size <= r.GetLimitBytes())
}
