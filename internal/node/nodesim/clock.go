package nodesim

import (
	"sync/atomic"
	"time"
)

// A Clock is a wall clock that somebody sets. Its zero value is right.
type Clock struct{ off atomic.Int64 }

// Now is the time that it shows.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.off.Load())) }

// Jump puts it forward by d, or back.
func (c *Clock) Jump(d time.Duration) { c.off.Add(int64(d)) }
