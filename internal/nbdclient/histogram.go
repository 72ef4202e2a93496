package nbdclient

import (
	"math/bits"
	"time"
)

// A histogram counts times in buckets of an eighth of their power of two, so a
// quantile is at most 12.5 % off.
type histogram struct {
	count   int64
	buckets [64 * 8]int64
}

func (h *histogram) add(d time.Duration) {
	h.count++
	h.buckets[bucket(max(d, 0))]++
}

func bucket(d time.Duration) int {
	if d < 8 {
		return int(d)
	}
	exp := bits.Len64(uint64(d)) - 4 // the top four bits are 1xxx
	return exp*8 + int(uint64(d)>>exp)
}

// quantile returns the upper bound of the bucket in which the q-th part of the
// times ends; 0 if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	left := int64(q*float64(h.count-1)) + 1
	for i, n := range h.buckets {
		if left -= n; left <= 0 {
			return upper(i)
		}
	}
	panic("nbdclient: histogram lost a count")
}

// upper is the longest time in bucket i.
func upper(i int) time.Duration {
	if i < 16 {
		return time.Duration(i)
	}
	exp := i/8 - 1
	return time.Duration((uint64(i%8+9) << exp) - 1)
}
