package nbd

import (
	"time"

	"vacate/internal/poll"
)

// MaxPoll is the most that Config.Poll may be.
const MaxPoll = poll.Max

// poll looks for something to do, as long as that has paid lately (package poll): a
// completion, or more from the client, for which window is the room, if there is
// any. It reports whether something was found; if not, Reap(false) has just found
// nothing (E2).
func (c *conn) poll(window []byte) bool {
	budget := c.polling.Begin()
	if budget == 0 {
		return false
	}
	found := false
	for start := time.Now(); !found; {
		found = c.inflight > 0 && c.queue.Reap(false) > 0 || window != nil && c.receive(window)
		if time.Since(start) >= budget || c.server.leaving.Load() {
			break
		}
	}
	c.polling.End(found)
	return found
}
