// Package plant names the bugs that the tests plant, so that each law's test
// can be seen to fail: a hunt that finds nothing proves nothing until it has
// found what was put there.
//
// In every build without the tag "planted", [Is] is a constant false, and the
// compiler removes the code behind it. With the tag, the environment variable
// VACATE_PLANTED names the bug that is alive, or several, with commas between. Such a build says so when it
// starts, and is never released.
package plant

// The bugs, by the law that they break.
const (
	GateSkipped       = "gate-skipped"        // L1: a shut gate admits requests
	FenceOff          = "fence-off"           // L1: an engine uses a drive while I/O of its predecessor is in flight
	ScheduleLeft      = "schedule-left"       // L2: a copy of a key schedule stays outside volatile memory
	ShareLeft         = "share-left"          // L2: a copy of a tenant's half of a key stays outside volatile memory
	LateDecrypt       = "late-decrypt"        // L5: a read that ends after the gate shut is decrypted
	CipherNull        = "cipher-null"         // L3: plaintext reaches the drive
	BufferNotCleared  = "buffer-not-cleared"  // L3: a buffer keeps a tenant's plaintext after its request
	BitEarly          = "bit-early"           // L4: a block counts as written before the drive said so
	MapIgnored        = "map-ignored"         // L4: every block counts as written
	GrownWritten      = "grown-written"       // L4: what a volume gets when it is resized counts as written
	ExclusionOff      = "exclusion-off"       // L4: sub-block writes do not exclude what overlaps them
	KeyNotWiped       = "key-not-wiped"       // L5: the keeper leaves the key pages as they are
	WipeBeforeCiphers = "wipe-before-ciphers" // L5: the key is wiped while cipher calls use it
	ServedEarly       = "served-early"        // L6: a lease is served before its OPEN record is durable
	ReleasedEarly     = "released-early"      // L6: a key is given away before its record is durable
	SentEarly         = "sent-early"          // L6: a record counts as logged before the log has it
	TakeoverDrained   = "takeover-drained"    // L8: a lease that a predecessor erased counts as drained before the fence is held
	InflightUnwritten = "inflight-unwritten"  // L8: a request of a ring is carried out without a note that it is in flight
	AnswerEarly       = "answer-early"        // L8: a message of a session is answered before it is taken
	ResubmitLeftOut   = "resubmit-left-out"   // L8: a successor does not do again what was in flight in a ring
)

// Variable names the environment variable that says which bug is alive.
const Variable = "VACATE_PLANTED"
