// Package vhostuser serves a volume to virtual machines, as a virtio block device
// over the vhost-user protocol
// (https://qemu-project.gitlab.io/qemu/interop/vhost-user.html). What is served of
// it, and the bytes that a successor finds, are in docs/spec/vhostuser.md.
//
// # Who does what
//
// A [Server] accepts one frontend at a time. Its session (session.go) is a goroutine
// on a thread of its own, which handles messages and nothing else: it looks at one
// in the socket (wire.go), works out what it makes of the session's record
// (handle.go, memory.go, device.go), stops the rings that must not run meanwhile,
// commits the record, lets them run again (ring.go), and takes and answers the
// message. Requests are the workers' business (package virtioblk): no message is on
// their path.
//
// # Sessions outlive engines
//
// Everything that a session needs lies with a [Keeper]: descriptors in places
// (place.go), what was negotiated in the session file (package volatile). A server
// that begins takes over what is there (adopt.go), whether its predecessor left as
// planned or was killed, and the frontend, which may be one that never connects
// again, sees a pause:
//
//	H1: a message is taken only when the record says that it is done, and is
//	    answered exactly once.
//	H2: a message that a predecessor has committed and not taken is handled again,
//	    and changes nothing.
//	H3: a ring runs only while the record says so. So what is in flight is in an
//	    inflight table that a successor looks at.
//	K1 to K3: what lies in places (place.go).
package vhostuser
