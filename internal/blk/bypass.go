package blk

// A Bypasser is a [Queue] whose owner may answer reads by itself where a block map
// says that nothing was written: it tells its client of a hole, and nothing is
// zeroed, copied or sent.
type Bypasser interface {
	Queue

	// Bypass asks whether a read may be answered so. If not, it is to be submitted,
	// and will fare as it must there: the lease is closed, or has to wait for its
	// share.
	Bypass() bool

	// Bypassed counts n bytes that were: as a read, or, unless alone, as a part of
	// one of which other parts are submitted.
	Bypassed(n int64, alone bool)
}
