package virtioblk

// Limits of ours. Each says what happens beyond it.
const (
	// maxSegments is how many ranges one discard or write zeroes may have, as the
	// configuration space tells. Beyond it: IOERR.
	maxSegments = 16
	// maxSectors is the longest such range, likewise: 4 GiB, so that marking its
	// blocks in the map holds no thread up for long. Beyond it: IOERR.
	maxSectors = 1 << 23

	// defaultDepth is how many requests a worker hands to the volume at once.
	// Beyond it they wait in their rings.
	defaultDepth = 128
	maxDepth     = 1024

	// batch is how many requests are taken from a ring before they are submitted,
	// and answered: the driver goes on with the first while the others are carried
	// out.
	batch = 16

	// A bounce buffer holds the part of a request whose segments do not end at
	// block boundaries. With none left, such requests wait for one.
	bounceSize  = 64 << 10
	bounceCount = 8
)
