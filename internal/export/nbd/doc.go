// Package nbd serves a volume to clients that speak the Network Block Device
// protocol over a unix socket. The words are those of the specification,
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; what is
// served of it is listed in docs/spec/nbd.md.
//
// # How a request flows
//
//  1. One recv(2) takes as many bytes as are there into the receive buffer.
//  2. gather parses all whole requests in it, judges each, and gives each that
//     may be carried out a slot. A write's payload stays where it was received;
//     a read's data gets its place in the send buffer, behind its reply header.
//  3. submit hands all of them down as one batch and reaps until all are done. A
//     write's payload is cleared as soon as that write is complete.
//  4. reply fills in the headers and sends all replies with one send(2). Then the
//     part of the send buffer that held data is cleared.
//  5. A read or write longer than [blk.MaxTransfer] goes alone, in pieces,
//     through the same two buffers (large.go).
//
// # Threads and memory
//
// A connection is one goroutine on a thread of its own. It waits at three
// places: in recv, in send, and in the device's Reap. Whatever a client does or
// leaves undone holds up that thread and nothing else, and costs the two buffers
// of its connection and nothing more; they are made when the client enters
// transmission, never before. [Server.Close] wakes a thread that waits in recv or
// send; one that waits for a device ends when the device answers. [Server.Leave]
// wakes those that wait for a request, and has them stop at a message boundary
// (leave.go).
//
// # Plaintext (law L3)
//
//	N1: a tenant's data is only ever in the two buffers of its connection, which
//	    are memory of package mem, and in the kernel's socket buffers.
//	N2: the receive buffer holds payload only of requests that are not complete.
//	N3: the send buffer holds data only from a read's submission until its reply
//	    was sent.
//	N4: a connection's buffers go back only when no request is in flight.
package nbd
