package volatile

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Bounds of a session.
const (
	SessionQueues  = 64
	SessionRegions = 32
	// MaxRingSize is the most descriptors of a ring.
	MaxRingSize = 1024
)

// PlaceSet is a set of a lease's places, as bits: place p is bit p mod 64 of word
// p/64.
type PlaceSet [4]uint64

// Has reports whether p is in the set.
func (s *PlaceSet) Has(p uint8) bool { return s[p>>6]>>(p&63)&1 != 0 }

// Add puts p into the set.
func (s *PlaceSet) Add(p uint8) { s[p>>6] |= 1 << (p & 63) }

// Len is how many places the set has.
func (s *PlaceSet) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// A SessionRecord is all that was negotiated with a frontend. Descriptors are
// named by the place in which the keeper holds them; 0 is none. The zero record
// is no session.
type SessionRecord struct {
	// Held are the places in which something may lie: those that are named, and
	// those that an engine filled or was to empty when it died.
	Held PlaceSet

	Conn, Channel, Log, Inflight uint8  // places
	Protocol                     uint64 // features of vhost-user that were set
	Features                     uint64 // of virtio, likewise
	FeaturesSet, ProtocolSet     bool
	WriteThrough                 bool   // the driver cleared the config space's writeback
	ToldBytes                    uint64 // size of the volume that the frontend knows; 0: none

	LogSize, LogOffset           uint64 // bytes, in the file of Log
	InflightSize, InflightOffset uint64 // bytes, in the file of Inflight
	InflightQueues, InflightRing uint16 // its queues, and the descriptors of each

	Regions [SessionRegions]SessionRegion // without a place: unused
	Removed SessionRegion                 // the last that was removed on its own; its place is 0
	Rings   [SessionQueues]SessionRing
}

// A SessionRegion is a piece of the guest's memory, in bytes.
type SessionRegion struct {
	Guest, User  uint64 // where the guest, and where the frontend sees it
	Size, Offset uint64 // in the file that lies in Place
	Place        uint8
}

// A SessionRing is what was said of one ring.
type SessionRing struct {
	Size             uint16 // descriptors, a power of two up to MaxRingSize; 0: not told
	Base             uint16 // available index to go on from, while it does not run
	Kick, Call, Err  uint8  // places
	Started          bool   // it was given a kick, or polls
	Enabled          bool
	Running          bool // requests may be in flight: the inflight table tells
	Addressed        bool // Desc and the others were told
	LogUsed          bool
	Desc, Avail, Use uint64 // the frontend's addresses
	LogAddr          uint64 // the guest's
}

// The layout of a copy: see the page.
const (
	ssnHeld      = 8
	ssnPlaces    = 40 // conn, channel, log, inflight
	ssnFlags     = 44
	ssnProtocol  = 48
	ssnFeatures  = 56
	ssnTold      = 64
	ssnLog       = 72
	ssnInflight  = 88
	ssnQueues    = 104
	ssnReserved  = 108
	ssnRemoved   = 112
	ssnRegions   = 152
	ssnRegion    = 40
	ssnRings     = ssnRegions + SessionRegions*ssnRegion
	ssnRing      = 48
	ssnEnd       = ssnRings + SessionQueues*ssnRing
	flagFeatures = 1 << 0
	flagProtocol = 1 << 1
	flagThrough  = 1 << 2

	flagStarted   = 1 << 0
	flagEnabled   = 1 << 1
	flagRunning   = 1 << 2
	flagAddressed = 1 << 3
	flagLogUsed   = 1 << 4
)

func flag(on bool, bit uint32) uint32 {
	if on {
		return bit
	}
	return 0
}

func (r *SessionRecord) encode(b []byte) {
	le := binary.LittleEndian
	for i, w := range r.Held {
		le.PutUint64(b[ssnHeld+8*i:], w)
	}
	b[ssnPlaces], b[ssnPlaces+1], b[ssnPlaces+2], b[ssnPlaces+3] = r.Conn, r.Channel, r.Log, r.Inflight
	le.PutUint32(b[ssnFlags:], flag(r.FeaturesSet, flagFeatures)|flag(r.ProtocolSet, flagProtocol)|flag(r.WriteThrough, flagThrough))
	le.PutUint64(b[ssnProtocol:], r.Protocol)
	le.PutUint64(b[ssnFeatures:], r.Features)
	le.PutUint64(b[ssnTold:], r.ToldBytes)
	le.PutUint64(b[ssnLog:], r.LogSize)
	le.PutUint64(b[ssnLog+8:], r.LogOffset)
	le.PutUint64(b[ssnInflight:], r.InflightSize)
	le.PutUint64(b[ssnInflight+8:], r.InflightOffset)
	le.PutUint16(b[ssnQueues:], r.InflightQueues)
	le.PutUint16(b[ssnQueues+2:], r.InflightRing)
	r.Removed.encode(b[ssnRemoved:])
	for i := range r.Regions {
		r.Regions[i].encode(b[ssnRegions+i*ssnRegion:])
	}
	for i := range r.Rings {
		r.Rings[i].encode(b[ssnRings+i*ssnRing:])
	}
}

func (g *SessionRegion) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b, g.Guest)
	le.PutUint64(b[8:], g.Size)
	le.PutUint64(b[16:], g.User)
	le.PutUint64(b[24:], g.Offset)
	b[32] = g.Place
}

func (q *SessionRing) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b, q.Desc)
	le.PutUint64(b[8:], q.Avail)
	le.PutUint64(b[16:], q.Use)
	le.PutUint64(b[24:], q.LogAddr)
	le.PutUint16(b[32:], q.Size)
	le.PutUint16(b[34:], q.Base)
	b[38], b[39], b[40] = q.Kick, q.Call, q.Err
	b[41] = byte(flag(q.Started, flagStarted) | flag(q.Enabled, flagEnabled) | flag(q.Running, flagRunning) |
		flag(q.Addressed, flagAddressed) | flag(q.LogUsed, flagLogUsed))
}

func (r *SessionRecord) decode(b []byte) error {
	le := binary.LittleEndian
	flags := le.Uint32(b[ssnFlags:])
	if !allZero(b[ssnReserved:ssnRemoved]) || !allZero(b[ssnEnd:sessionCopy-4]) || flags&^(flagFeatures|flagProtocol|flagThrough) != 0 {
		return fmt.Errorf("session: reserved bytes are in use: %w", ErrFormat)
	}
	for i := range r.Held {
		r.Held[i] = le.Uint64(b[ssnHeld+8*i:])
	}
	r.Conn, r.Channel, r.Log, r.Inflight = b[ssnPlaces], b[ssnPlaces+1], b[ssnPlaces+2], b[ssnPlaces+3]
	r.FeaturesSet, r.ProtocolSet, r.WriteThrough = flags&flagFeatures != 0, flags&flagProtocol != 0, flags&flagThrough != 0
	r.Protocol = le.Uint64(b[ssnProtocol:])
	r.Features = le.Uint64(b[ssnFeatures:])
	r.ToldBytes = le.Uint64(b[ssnTold:])
	r.LogSize, r.LogOffset = le.Uint64(b[ssnLog:]), le.Uint64(b[ssnLog+8:])
	r.InflightSize, r.InflightOffset = le.Uint64(b[ssnInflight:]), le.Uint64(b[ssnInflight+8:])
	r.InflightQueues, r.InflightRing = le.Uint16(b[ssnQueues:]), le.Uint16(b[ssnQueues+2:])
	if err := r.Removed.decode(b[ssnRemoved:][:ssnRegion]); err != nil {
		return err
	}
	for i := range r.Regions {
		if err := r.Regions[i].decode(b[ssnRegions+i*ssnRegion:][:ssnRegion]); err != nil {
			return err
		}
	}
	for i := range r.Rings {
		if err := r.Rings[i].decode(b[ssnRings+i*ssnRing:][:ssnRing]); err != nil {
			return err
		}
	}
	return nil
}

func (g *SessionRegion) decode(b []byte) error {
	le := binary.LittleEndian
	if !allZero(b[33:]) {
		return fmt.Errorf("session: reserved bytes of a region are in use: %w", ErrFormat)
	}
	*g = SessionRegion{Guest: le.Uint64(b), Size: le.Uint64(b[8:]), User: le.Uint64(b[16:]), Offset: le.Uint64(b[24:]), Place: b[32]}
	return nil
}

func (q *SessionRing) decode(b []byte) error {
	le := binary.LittleEndian
	f := uint32(b[41])
	if !allZero(b[36:38]) || !allZero(b[42:]) || f&^(flagStarted|flagEnabled|flagRunning|flagAddressed|flagLogUsed) != 0 {
		return fmt.Errorf("session: reserved bytes of a ring are in use: %w", ErrFormat)
	}
	*q = SessionRing{
		Desc: le.Uint64(b), Avail: le.Uint64(b[8:]), Use: le.Uint64(b[16:]), LogAddr: le.Uint64(b[24:]),
		Size: le.Uint16(b[32:]), Base: le.Uint16(b[34:]),
		Kick: b[38], Call: b[39], Err: b[40],
		Started: f&flagStarted != 0, Enabled: f&flagEnabled != 0, Running: f&flagRunning != 0,
		Addressed: f&flagAddressed != 0, LogUsed: f&flagLogUsed != 0,
	}
	return nil
}

// Named calls yield with each place that the record names.
func (r *SessionRecord) Named(yield func(place uint8)) {
	name := func(p uint8) {
		if p != 0 {
			yield(p)
		}
	}
	name(r.Conn)
	name(r.Channel)
	name(r.Log)
	name(r.Inflight)
	for i := range r.Regions {
		name(r.Regions[i].Place)
	}
	for i := range r.Rings {
		name(r.Rings[i].Kick)
		name(r.Rings[i].Call)
		name(r.Rings[i].Err)
	}
}

// validate checks what must hold of every record. What the frontend said, sizes
// and addresses, is checked where it is used.
func (r *SessionRecord) validate() error {
	var seen PlaceSet
	var err error
	r.Named(func(p uint8) {
		switch {
		case seen.Has(p):
			err = fmt.Errorf("session: place %d is named twice: %w", p, ErrFormat)
		case !r.Held.Has(p):
			err = fmt.Errorf("session: place %d is named, and not held: %w", p, ErrFormat)
		case p < 2:
			err = fmt.Errorf("session: place %d is not a session's: %w", p, ErrFormat)
		}
		seen.Add(p)
	})
	switch {
	case err != nil:
		return err
	case r.Conn == 0 && seen.Len() != 0:
		return fmt.Errorf("session: descriptors without a connection: %w", ErrFormat)
	case r.Held[0]&3 != 0:
		return fmt.Errorf("session: places of others are held: %w", ErrFormat)
	case r.Removed.Place != 0:
		return fmt.Errorf("session: the removed region has a place: %w", ErrFormat)
	}
	for i := range r.Rings {
		if n := r.Rings[i].Size; n > MaxRingSize || n&(n-1) != 0 {
			return fmt.Errorf("session: ring %d of %d descriptors: %w", i, n, ErrFormat)
		}
	}
	return nil
}
