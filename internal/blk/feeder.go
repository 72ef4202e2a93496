package blk

// A FIFO holds requests that wait in a layer, oldest first. It belongs to one
// goroutine.
type FIFO struct {
	ring []*Request // length a power of two
	head uint
	n    int
	room int
}

// NewFIFO returns a FIFO with room for depth requests.
func NewFIFO(depth int) FIFO {
	size := 1
	for size < depth {
		size *= 2
	}
	return FIFO{ring: make([]*Request, size), room: depth}
}

// Len returns the number of requests that wait.
func (f *FIFO) Len() int { return f.n }

// Push adds a request at the end. More than the queue's depth is the caller's
// broken invariant (see [Queue]), and panics.
func (f *FIFO) Push(r *Request) {
	if f.n == f.room {
		panic("blk: more requests submitted than the queue's depth")
	}
	f.ring[(f.head+uint(f.n))&uint(len(f.ring)-1)] = r
	f.n++
}

// Peek returns the oldest request, or nil.
func (f *FIFO) Peek() *Request {
	if f.n == 0 {
		return nil
	}
	return f.ring[f.head&uint(len(f.ring)-1)]
}

// Pop removes the oldest request. REQUIRES: Len() > 0.
func (f *FIFO) Pop() {
	f.ring[f.head&uint(len(f.ring)-1)] = nil
	f.head++
	f.n--
}

// A Source fills a [Feeder]: it moves as much work as it can towards the queue
// below, and calls Add for each request that is ready.
type Source interface{ Fill() }

// A Feeder hands the children of a layer to the queue below it, in batches and
// without recursion. A completion may come from within Submit of the queue
// below, free what another request waits for, and let the layer's owner submit
// more; all of that is collected here, and goes down with the next batch. So
// the stack stays as deep as there are layers.
//
//	Submit/Reap ─> Run ─> Fill ─> Add … ─> below.Submit ─> Complete ─> Add …
//	                └──────<── until nothing was added ──<──────────────┘
//
// It belongs to the goroutine that owns the queue.
type Feeder struct {
	below    Queue
	next     []*Request // for the next batch
	batch    []*Request // being submitted
	inFlight int        // children that were added and have not completed
	running  bool
}

// NewFeeder returns a feeder of below, with room for depth children in flight.
func NewFeeder(below Queue, depth int) Feeder {
	return Feeder{below: below, next: make([]*Request, 0, depth), batch: make([]*Request, 0, depth)}
}

// Add puts a child into the next batch. REQUIRES: fewer than depth in flight,
// and a Run to follow, or under way.
func (f *Feeder) Add(r *Request) {
	if f.inFlight == cap(f.next) {
		panic("blk: more children than the depth of the queue below")
	}
	f.inFlight++
	f.next = append(f.next, r)
}

// Finished takes note that a child has completed.
func (f *Feeder) Finished() { f.inFlight-- }

// InFlight returns the number of children that have not completed.
func (f *Feeder) InFlight() int { return f.inFlight }

// Running reports whether a Run is under way: the caller is then inside of a
// completion, and what it adds goes down when it returns.
func (f *Feeder) Running() bool { return f.running }

// Run lets s fill batches and submits them, until nothing is left to submit.
// Within a Run it returns at once: the one under way goes on with what is new.
func (f *Feeder) Run(s Source) {
	if f.running {
		return
	}
	f.running = true
	for {
		s.Fill()
		if len(f.next) == 0 {
			break
		}
		f.batch, f.next = f.next, f.batch[:0]
		f.below.Submit(f.batch)
	}
	f.running = false
}
