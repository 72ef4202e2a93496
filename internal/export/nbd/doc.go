// Package nbd serves a volume to clients that speak the Network Block Device
// protocol over a unix socket. The words are those of the specification,
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; what is
// served of it is listed in docs/spec/nbd.md.
//
// # How a request flows
//
//  1. One recv(2) takes as many bytes as are there into the receive buffer (rx.go).
//  2. gather parses all whole requests in it and judges each (gather.go). What
//     needs no I/O is answered at once, a read of what was never written among it:
//     clients with structured replies are told of a hole (hole.go). Each other
//     request gets a slot (slot.go). A write's payload stays where it was received;
//     a read's data gets its place in the send buffer, behind its reply header
//     (place.go).
//  3. launch submits them as one batch, and reaps what is done. A write's payload is
//     cleared as soon as that write is complete.
//  4. flush sends the replies to all that is done, whatever else is in flight, with
//     one send(2) or sendmsg(2) (out.go). Then what held data is cleared.
//  5. If nothing moved, the thread polls for a moment (poll.go), and then waits
//     (loop.go).
//  6. A read or write longer than [blk.MaxTransfer] goes alone, in pieces,
//     through the same two buffers (large.go).
//
// # Threads and memory
//
// A connection is one goroutine on a thread of its own. With nothing in flight it
// waits for its client, in recv or send; else for the socket and the volume at once,
// in ppoll, or, where the volume cannot be waited for so, in the device's Reap.
// Whatever a client does or leaves undone holds up that thread and nothing else, and
// costs the two buffers of its connection and nothing more; they are made when the
// client enters transmission, never before. [Server.Close] wakes a thread that waits
// for its client; one that waits for a device alone ends when the device answers.
// [Server.Leave] wakes those that wait for a request, and has them stop at a message
// boundary (leave.go).
//
// # Plaintext (law L3)
//
//	N1: a tenant's data is only ever in the two buffers of its connection, which
//	    are memory of package mem, and in the kernel's socket buffers.
//	N2: the receive buffer holds payload only of requests that are not complete, and
//	    may still be.
//	N3: the send buffer holds data only from a read's submission until its reply
//	    was sent, or nobody takes it any more.
//	N4: a connection's buffers go back only when no request is in flight.
package nbd
