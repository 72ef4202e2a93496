// Package fail names the points at which a hunt ends a process: each is a
// moment between two steps of which a crash must leave the first done and the
// second not, or the other way round.
//
// In every build without the tag "failpoints", [At] is empty, and the compiler
// removes the call. With the tag, the environment variable VACATE_FAIL names a
// file that all processes of a daemon map. Whoever comes first to the point that
// the file names takes the name out and ends its process with SIGKILL.
package fail

// A Point is a place in the program.
type Point string

// The points of the engine's take-over, of a lease's opening and close, and of
// the data path. A name says in which process it lies.
const (
	EngineStarted    Point = "engine.started"     // nothing is taken over yet
	EngineScanned    Point = "engine.scanned"     // the table was read, the keeper was not told
	EngineUp         Point = "engine.up"          // the keeper was told, nothing is served yet
	EngineFenced     Point = "engine.fenced"      // a drive's fence is held, its leases are not served yet
	EngineServing    Point = "engine.serving"     // a lease that was taken over is served
	EngineLeaving    Point = "engine.leaving"     // a connection was passed on, others were not
	OpenMapped       Point = "engine.open.mapped" // the block map is made, the slot says opening
	OpenKeyed        Point = "engine.open.keyed"  // the key is made
	OpenHeld         Point = "engine.open.held"   // everything is made, nothing is served, nobody was told
	OpenWritten      Point = "engine.open.open"   // the slot says open, nobody was told
	CloseNoted       Point = "engine.close.noted" // the slot says closing
	CloseShut        Point = "engine.close.shut"  // the gates are shut
	CloseWiped       Point = "engine.close.wiped" // the keeper has destroyed the key
	CloseErased      Point = "engine.close.erased"
	CloseDrained     Point = "engine.close.drained" // nothing is in flight
	CloseEnded       Point = "engine.close.ended"   // map given back, slot says ended
	ResizeParted     Point = "engine.resize.parted" // nothing of the lease is served, its map is as it was
	ResizeCopied     Point = "engine.resize.copied" // the larger map is made, the keeper holds the old one
	ResizeMapped     Point = "engine.resize.mapped" // the keeper holds the larger map, the slot has the old size
	ResizeNoted      Point = "engine.resize.noted"  // the slot has the new size, the lease is not served
	ResizeDone       Point = "engine.resize.done"   // the lease is served again, nobody was told
	DriveNoted       Point = "engine.drive.noted"   // the table holds a drive's new epoch, its superblock may not
	WriteBegun       Point = "engine.write.begun"   // the write is about to be handed to the drive
	WriteDone        Point = "engine.write.done"    // the drive has written, the bit is not set
	WriteMarked      Point = "engine.write.marked"  // the bit is set, the client was not told
	ControlStarted   Point = "control.started"
	ControlKeyed     Point = "control.open.keyed"     // the engine has the key, the journal does not have the lease
	ControlOpening   Point = "control.open.stored"    // the journal has it, the engine does not serve it
	ControlOpened    Point = "control.open.opened"    // the engine serves it, nobody was told
	ControlResizing  Point = "control.resize.stored"  // the journal has the new size, the engine does not
	ControlResized   Point = "control.resize.resized" // the engine has it, nobody was told
	ControlErased    Point = "control.close.erased"   // the key is gone, no record is written
	ControlRecorded  Point = "control.close.recorded"
	ControlRecovered Point = "control.recovered"
	ControlSigned    Point = "control.record.signed"    // envelopes are stored, the log has none of them
	ControlLogged    Point = "control.record.logged"    // the log has them, the journal does not know
	ControlCertified Point = "control.record.certified" // a certificate is written, the journal does not know
)

// The points of a vhost-user session. Each is called on a thread of the engine:
// the first three by the one that serves messages, the others by a ring's.
const (
	EngineVhostPeeked    Point = "engine.vhost.peeked"    // a message was seen, nothing is noted
	EngineVhostCommitted Point = "engine.vhost.committed" // what it asks is noted, the message is still in the socket
	EngineVhostConsumed  Point = "engine.vhost.consumed"  // it is taken out and answered, places that it freed are still held
	EngineRingPopped     Point = "engine.ring.popped"     // a request is noted as in flight, nothing is submitted
	EngineRingDone       Point = "engine.ring.done"       // it is carried out, the used ring does not say so
	EngineRingPublished  Point = "engine.ring.published"  // the used ring says so, the driver was not called
)

// The points of the keeper, whose end loses every lease.
const (
	KeeperEngineStarted  Point = "keeper.engine.started"
	KeeperEngineEnded    Point = "keeper.engine.ended" // the next one is not started
	KeeperControlStarted Point = "keeper.control.started"
	KeeperMapped         Point = "keeper.mapped"    // a block map is made, the engine was not told
	KeeperHeld           Point = "keeper.held"      // likewise, a listening socket, or what is in a place
	KeeperPassed         Point = "keeper.passed"    // likewise, a client's connection
	KeeperWiped          Point = "keeper.wiped"     // a key is destroyed, the engine was not told
	KeeperUnmapped       Point = "keeper.unmapped"  // a map is forgotten, the engine was not told
	KeeperRemapped       Point = "keeper.remapped"  // another block map is held for a slot, the engine was not told
	KeeperUp             Point = "keeper.up"        // the passed connections are forgotten, likewise
	KeeperDestroyed      Point = "keeper.destroyed" // every key is destroyed, maps and table are there
	KeeperReset          Point = "keeper.reset"     // the table is empty
	KeeperLeaving        Point = "keeper.leaving"   // an engine was asked to leave for its successor
	KeeperExec           Point = "keeper.exec"      // the next keeper is about to go on
	KeeperAdopted        Point = "keeper.adopted"   // it has taken over
)

// Variable names the environment variable with the path of the file, in a build
// that has fail points.
const Variable = "VACATE_FAIL"
