package volume

import "vacate/internal/blk"

// Bypass implements [blk.Bypasser]. Where there are limits every read waits for its
// share.
func (q *queue) Bypass(n int64) bool {
	if q.v.limiter.Load() != nil || q.gate.IsShut() {
		return false
	}
	q.count.done[blk.OpRead].Add(1) // at once: no Submit or Reap may follow
	q.count.readBytes.Add(uint64(n))
	return true
}
