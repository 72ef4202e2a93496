// Package ublk serves a volume as a block device of the host, over the kernel's ublk
// driver: the device's requests come out of its character device, and are answered
// there. Making and ending devices is not this package's: that needs privileges
// (package ublkctl).
//
// # How a request moves
//
// The driver has a command of ours for each tag of each queue. It completes one when
// it has put a request into the tag's descriptor, and has a request's answer and the
// wish for the next one in the command that follows:
//
//	fetch ──> descriptor ──> [write: its data ← driver] ──> volume ──> [read: data → driver] ──> commit, fetch
//
// Data is copied by pread(2) and pwrite(2) on the character device (UBLK_F_USER_COPY):
// a tag then needs memory only while it has a request, and not one buffer of the
// longest transfer each. The memory is cleared before another request has it (L3).
//
// # Threads
//
// Each queue of the device is served by one thread with one queue of the volume; the
// driver takes commands from the thread that has fetched first, and from no other.
//
// # What holds
//
//	U1: each request is answered, once: with what became of it, with an error, or,
//	    where this process ends, by the next one that serves the device, which the
//	    driver gives it again.
//	U2: while a server is paused, it has no queue of the volume: what comes waits.
//	U3: after Close nothing reaches the volume; what comes fails with EIO.
//	U4: a ring is closed only when the driver has given back all commands in it, so
//	    when the device is stopped. Else Linux 6.12 oopses. The end of the process
//	    is no such closing.
package ublk
