package blk

// A Bypasser is a [Queue] whose owner may answer reads by itself where a block map
// says that nothing was written: it tells its client of a hole, and nothing is
// zeroed, copied or sent.
type Bypasser interface {
	Queue

	// Bypass asks whether n bytes of a read may be answered so, and counts them as a
	// read if they may. If not, the read is to be submitted, and will fare as it
	// must there: the lease is closed, or has to wait for its share.
	Bypass(n int64) bool
}
