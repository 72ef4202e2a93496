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
	// out. Of 4, 6, 8, 16, 32 and 64 this is the best for a driver that sleeps (16 has
	// three quarters of its rate), and as good as any for one that polls.
	batch = 8
	// batchBytes ends a batch early, likewise: long requests are some each.
	batchBytes = 256 << 10

	// maxFlying is how many bytes of one request the volume has at once, more than the
	// drive below works on; and three quarters of the depth are the most, in parts. So
	// one of 4 GiB leaves room for others beside it.
	maxFlying = 2 << 20

	// maxVain is how many kicks in a row may announce nothing. Beyond it the worker
	// looks at the ring now and then, until there is something: a semaphore that was
	// counted up to 2^63 would wake it for ever.
	maxVain = 64

	// A bounce buffer holds the part of a request whose segments do not end at
	// block boundaries. With none left, such requests wait for one.
	bounceSize  = 64 << 10
	bounceCount = 8
)
