// Package vhostclient is a vhost-user-blk frontend for tests: what a virtual
// machine monitor and the driver in its guest are to a server, over a memory of
// its own.
//
// [Dial] connects in the order of messages that a [Sequence] gives (that of this
// package, or of QEMU, Cloud Hypervisor or Firecracker), and starts the rings. A
// [Client] then reads and writes as nbdclient's does; a [Load] measures, a [Verify]
// checks every byte. A [Queue] is the driver's side of one ring, for tests that want
// to place each descriptor.
//
// It is written from the specifications (vhost-user of QEMU's documentation, virtio
// 1.2), and shares nothing with the server: were a wrong constant shared, it would
// agree with itself.
package vhostclient
