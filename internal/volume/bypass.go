package volume

import "vacate/internal/blk"

// Bypass implements [blk.Bypasser]. Where there are limits every read waits for its
// share.
func (q *queue) Bypass() bool { return q.v.limiter.Load() == nil && !q.gate.IsShut() }

// Bypassed implements [blk.Bypasser]. It tells at once: no Submit or Reap may follow.
func (q *queue) Bypassed(n int64, alone bool) {
	if alone {
		q.count.done[blk.OpRead].Add(1)
	}
	q.count.readBytes.Add(uint64(n))
}
