package power

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// A decision is all that is drawn for one cut, but for what the disks lose.
type decision struct {
	fresh   bool          // the machine gets new disks first
	during  string        // what is cut: one of the moments below
	disk    string        // whose request triggers the cut, or "" for the time alone
	at      int           // the disk's n-th write or flush
	done    bool          // it is carried out, though never answered
	after   time.Duration // at the latest
	load    uint64        // seed of the load
	tenants int
}

// The moments.
const (
	duringStart  = "start" // the file system's recovery, the journal's, the leases'
	duringEnrol  = "enrolment"
	duringCheck  = "check" // of the leases before, and one over the whole drive
	duringLoad   = "load"
	freshEvery   = 12 // cuts with the same disks
	maxTenants   = 4
	stateName    = "state"
	dataName     = "data"
	maxStateAt   = 120
	maxDataAt    = 1500
	maxLoadTime  = 5 * time.Second
	maxOtherTime = 3 * time.Second
)

func decide(r *rand.Rand, cut int) decision {
	d := decision{fresh: cut%freshEvery == 1, load: r.Uint64(), tenants: 1 + r.IntN(maxTenants), done: r.IntN(2) == 0}
	switch k := r.IntN(20); {
	case k < 3:
		d.during = duringStart
	case k < 5:
		d.during = duringCheck
	case k < 8 && d.fresh:
		d.during = duringEnrol
	default:
		d.during = duringLoad
	}
	longest := maxOtherTime
	if d.during == duringLoad {
		longest = maxLoadTime
	}
	d.after = time.Duration(r.Int64N(int64(longest)))
	switch k := r.IntN(10); {
	case k < 5: // few requests, each of which matters
		d.disk, d.at, d.after = stateName, 1+r.IntN(maxStateAt), longest
	case k < 7:
		d.disk, d.at, d.after = dataName, 1+r.IntN(maxDataAt), longest
	}
	if d.during == duringEnrol || d.during == duringStart {
		d.at = 1 + d.at/4 // there are fewer
	}
	return d
}

func (d decision) String() string {
	s := d.during
	if d.fresh {
		s = "fresh disks, " + s
	}
	if d.disk == "" {
		return fmt.Sprintf("%s, after %v", s, d.after.Round(time.Millisecond))
	}
	how := "lost"
	if d.done {
		how = "done"
	}
	return fmt.Sprintf("%s, at %s's request %d (%s)", s, d.disk, d.at, how)
}
