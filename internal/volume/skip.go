package volume

import "vacate/internal/blk"

// Skip implements [blk.Skipper]. Where there are limits every read waits for its
// share.
func (q *queue) Skip(n int64) bool {
	if q.v.limiter.Load() != nil || q.gate.IsShut() {
		return false
	}
	q.count.add(blk.OpRead, n, 0)
	return true
}
