package volatile

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// MessageSize is the size of every message of the link, in bytes.
const MessageSize = 64

const (
	messageMagic = "VL"
	replyBit     = 0x8000
)

// A Kind says what a message is. A reply has its request's kind.
type Kind uint16

// The kinds. KindControl goes from keeper to engine and has no reply, the
// others from engine to keeper.
const (
	KindMap     Kind = 1 // make a block map: Slot, Blocks, Lease → a descriptor
	KindUnmap   Kind = 2 // forget the block map of Slot
	KindWipe    Kind = 3 // destroy the key in Slot → StartedNs, DoneNs, ReadBack
	KindControl Kind = 4 // here is a connection to control: a descriptor
	kinds       Kind = 5
)

var kindNames = [kinds]string{"none", "map", "unmap", "wipe", "control"}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint16(k))
}

// A Message is what keeper and engine say to each other.
type Message struct {
	Kind  Kind
	Reply bool
	Slot  uint32 // checked by the keeper, not by the decoder
	ID    uint64 // of the request; its reply repeats it

	Blocks uint64  // map
	Lease  LeaseID // map

	// Of replies.
	Errno     syscall.Errno // 0: it was done
	ReadBack  bool          // wipe: the slot was overwritten and zeros were read back
	StartedNs int64         // wipe: CLOCK_BOOTTIME
	DoneNs    int64         // wipe
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
	le.PutUint64(b[40:], uint64(m.StartedNs))
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
		Kind:      Kind(kind &^ replyBit),
		Reply:     kind&replyBit != 0,
		Slot:      le.Uint32(b[4:]),
		ID:        le.Uint64(b[8:]),
		Blocks:    le.Uint64(b[16:]),
		StartedNs: int64(le.Uint64(b[40:])),
		DoneNs:    int64(le.Uint64(b[48:])),
		Errno:     syscall.Errno(le.Uint32(b[56:])),
		ReadBack:  b[60] == 1,
	}
	copy(m.Lease[:], b[24:])
	if string(b[:2]) != messageMagic || m.Kind == 0 || m.Kind >= kinds ||
		b[60] > 1 || b[61] != 0 || b[62] != 0 || b[63] != 0 {
		return fmt.Errorf("link message % x: %w", b[:8], ErrFormat)
	}
	return nil
}
