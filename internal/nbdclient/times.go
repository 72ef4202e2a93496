package nbdclient

import "time"

// Times collects how long requests took that were not a [Load]'s, so that both
// are counted alike. The zero value is empty.
type Times struct{ h histogram }

// Add counts one request.
func (t *Times) Add(d time.Duration) { t.h.add(d) }

// Merge adds what other has counted.
func (t *Times) Merge(other *Times) {
	t.h.count += other.h.count
	for i, n := range other.h.buckets {
		t.h.buckets[i] += n
	}
}

// Quantile returns the time that the q-th part of the requests did not exceed, at
// most 12.5 % too long; 0 if there were none.
func (t *Times) Quantile(q float64) time.Duration { return t.h.quantile(q) }
