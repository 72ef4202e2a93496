package volatile

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// MessageSize is the size of every message of both links, in bytes.
const MessageSize = 64

const (
	messageMagic = "VL"
	replyBit     = 0x8000
)

// A Kind says what a message is. A reply has its request's kind.
type Kind uint16

// The kinds. Those from the keeper, and KindReady and KindStop, have no reply.
const (
	KindMap     Kind = 1  // engine: make a block map: Slot, Blocks, Lease, Arg extents → a descriptor
	KindUnmap   Kind = 2  // engine: forget the block map and the listening socket of Slot
	KindWipe    Kind = 3  // engine: destroy the key in Slot → StartedNs, DoneNs, ReadBack
	KindControl Kind = 4  // keeper: here is the connection between engine and control: a descriptor
	KindHold    Kind = 5  // engine: hold the listening socket of Slot: a descriptor
	KindFetch   Kind = 6  // engine: what is held for Slot, by Arg → a descriptor, Arg terms
	KindPass    Kind = 7  // engine: hold a connection of Slot for the next engine: a descriptor, Arg terms
	KindUp      Kind = 8  // engine: everything is taken over
	KindLeave   Kind = 9  // keeper: pass every connection, then exit
	KindReady   Kind = 10 // control: it has recovered
	KindStop    Kind = 11 // control: the stop is granted
	KindUpgrade Kind = 12 // control: start the upgrade
	KindKeep    Kind = 13 // engine: hold this in place Arg of Slot, instead of what is there: a descriptor
	KindYield   Kind = 14 // engine: give up what is in place Arg of Slot
	KindRemap   Kind = 15 // engine: hold this block map of Slot instead of the one that is there: a descriptor
	kinds       Kind = 16
)

// What Arg of a KindFetch names.
const (
	FetchMap      = 0 // the block map
	FetchListener = 1 // the listening socket
	FetchConn     = 2 // the first connection that was passed; the next ones follow

	FetchPlace = 1 << 32 // what is in place 0; the next ones follow
)

// Places is how many places a slot has, for what the sessions of its lease's
// exports are made of. What an export keeps in which is its own matter.
const Places = 256

// MaxPassed is how many connections a keeper holds at once, over all slots.
const MaxPassed = 16384

var kindNames = [kinds]string{
	"none", "map", "unmap", "wipe", "control", "hold", "fetch", "pass", "up", "leave", "ready", "stop", "upgrade",
	"keep", "yield", "remap",
}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint16(k))
}

// A Message is what keeper, engine and control say to each other.
type Message struct {
	Kind  Kind
	Reply bool
	Slot  uint32 // checked by the keeper, not by the decoder
	ID    uint64 // of the request; its reply repeats it

	Blocks uint64  // map
	Lease  LeaseID // map
	Arg    uint64  // map: extents; fetch: what; reply to fetch, and pass: terms; keep, yield: place

	// Of replies.
	Errno     syscall.Errno // 0: it was done
	ReadBack  bool          // wipe: the slot was overwritten and zeros were read back
	StartedNs int64         // wipe, in the place of Arg: CLOCK_BOOTTIME
	DoneNs    int64         // wipe
}

// wiped reports whether m has StartedNs where all others have Arg.
func (m *Message) wiped() bool { return m.Kind == KindWipe && m.Reply }

// Carries reports whether a descriptor may come with m. One that comes with any
// other message ends the link.
func (m *Message) Carries() bool {
	switch m.Kind {
	case KindMap, KindFetch:
		return m.Reply
	case KindControl, KindHold, KindPass, KindKeep, KindRemap:
		return !m.Reply
	}
	return false
}

// Encode writes m.
func (m *Message) Encode(b *[MessageSize]byte) {
	le := binary.LittleEndian
	*b = [MessageSize]byte{}
	copy(b[:], messageMagic)
	kind := uint16(m.Kind)
	if m.Reply {
		kind |= replyBit
	}
	le.PutUint16(b[2:], kind)
	le.PutUint32(b[4:], m.Slot)
	le.PutUint64(b[8:], m.ID)
	le.PutUint64(b[16:], m.Blocks)
	copy(b[24:], m.Lease[:])
	le.PutUint64(b[40:], m.Arg)
	if m.wiped() {
		le.PutUint64(b[40:], uint64(m.StartedNs))
	}
	le.PutUint64(b[48:], uint64(m.DoneNs))
	le.PutUint32(b[56:], uint32(m.Errno))
	if m.ReadBack {
		b[60] = 1
	}
}

// Decode reads a message. It checks the form, not whether the request makes
// sense.
func (m *Message) Decode(b *[MessageSize]byte) error {
	le := binary.LittleEndian
	kind := le.Uint16(b[2:])
	*m = Message{
		Kind:     Kind(kind &^ replyBit),
		Reply:    kind&replyBit != 0,
		Slot:     le.Uint32(b[4:]),
		ID:       le.Uint64(b[8:]),
		Blocks:   le.Uint64(b[16:]),
		Arg:      le.Uint64(b[40:]),
		DoneNs:   int64(le.Uint64(b[48:])),
		Errno:    syscall.Errno(le.Uint32(b[56:])),
		ReadBack: b[60] == 1,
	}
	if m.wiped() {
		m.StartedNs, m.Arg = int64(m.Arg), 0
	}
	copy(m.Lease[:], b[24:])
	if string(b[:2]) != messageMagic || m.Kind == 0 || m.Kind >= kinds ||
		b[60] > 1 || b[61] != 0 || b[62] != 0 || b[63] != 0 {
		return fmt.Errorf("link message % x: %w", b[:8], ErrFormat)
	}
	return nil
}
