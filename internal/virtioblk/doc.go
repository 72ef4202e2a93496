// Package virtioblk is the virtio block device (virtio 1.2, 5.2): it takes requests
// from the rings of package virtq, carries them out on a volume, and answers them.
// Who made the rings, and what the descriptors are that announce work, is the
// business of a protocol above it.
//
// # How a request flows
//
//  1. take pops a batch of chains from each ring. A job is made of each (job.go):
//     its header is read once, and judged.
//  2. What needs no I/O is answered at once. Else the job is cut into parts of at
//     most [blk.MaxTransfer] (cut.go): where a segment of the driver's memory holds
//     whole blocks, or all that is left, the part goes straight there, as
//     [blk.Foreign]; else through a bounce buffer.
//  3. launch submits the parts of all rings as one batch, and reaps what is done.
//  4. A job whose parts are all done gets its status, and its element in the used
//     ring (answer.go).
//  5. publish makes the used elements of a ring visible with one store, and calls the
//     driver if it wants that. Nothing waits for another request of its batch.
//  6. If nothing moved, the thread polls for a moment (package poll), asks the
//     drivers to announce what they add, looks once more, and sleeps (loop.go).
//
// # Rules
//
//	V1: whatever a driver puts into its rings costs it errors, or its ring; other
//	    rings go on.
//	V2: guest memory may change, and may fault, at any time. What is decided by is
//	    read once. A fault on a request's memory is that request's IOERR; a fault on a
//	    ring's memory is the end of that ring.
//	V3: a tenant's data is only in its own memory, and in bounce buffers, which are
//	    cleared as they are put back (law L3).
//	V4: every request that was popped is answered exactly once, or stays in the
//	    inflight table of its ring for a successor.
//	V5: with requests in flight the thread never waits for a driver alone.
package virtioblk
