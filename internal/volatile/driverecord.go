package volatile

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// MaxDrivePath is the length of the longest path that a [DriveRecord] holds, in
// bytes.
const MaxDrivePath = 432

// A DriveRecord is what the table knows about a drive that an engine has opened,
// or is about to: as much as the next one needs to open it. The zero record is
// an empty slot.
type DriveRecord struct {
	UUID, Node   [16]byte // of its superblock; not zero
	Epoch        uint64   // that the superblock has, or has not got yet: then it has Epoch-1
	ForceForward bool     // flushes go to the device whatever it says of its cache
	Path         string   // 1 ≤ len(Path) ≤ MaxDrivePath, without a zero byte
	// Watched identifies what a drive with a volatile cache must still be for its
	// completed writes to be there: one that lost them has another. Zero: flushes
	// reach the drive, or there is no such cache.
	Watched [16]byte
}

// driveSize is the size of one of the two copies that each drive slot has.
const driveSize = 512

const (
	drvUUID     = 8
	drvNode     = 24
	drvEpoch    = 40
	drvFlags    = 48
	drvPathLen  = 52
	drvPath     = 56
	drvWatched  = drvPath + MaxDrivePath
	drvReserved = drvWatched + 16
	drvCRC      = driveSize - 4

	drvForceForward = 1 // the only flag
)

func (r *DriveRecord) validate() error {
	switch {
	case *r == DriveRecord{}:
		return nil
	case r.UUID == [16]byte{}:
		return fmt.Errorf("a drive without a UUID: %w", ErrFormat)
	case r.Node == [16]byte{}:
		return fmt.Errorf("drive %x of no node: %w", r.UUID, ErrFormat)
	case r.Path == "" || len(r.Path) > MaxDrivePath || strings.IndexByte(r.Path, 0) >= 0:
		return fmt.Errorf("drive %x: a path of %d bytes, want 1 to %d and no zero among them: %w",
			r.UUID, len(r.Path), MaxDrivePath, ErrFormat)
	}
	return nil
}

func (r *DriveRecord) encode(b []byte) {
	le := binary.LittleEndian
	copy(b[drvUUID:], r.UUID[:])
	copy(b[drvNode:], r.Node[:])
	le.PutUint64(b[drvEpoch:], r.Epoch)
	if r.ForceForward {
		le.PutUint32(b[drvFlags:], drvForceForward)
	}
	le.PutUint32(b[drvPathLen:], uint32(len(r.Path)))
	copy(b[drvPath:drvWatched], r.Path)
	copy(b[drvWatched:drvReserved], r.Watched[:])
}

func (r *DriveRecord) decode(b []byte) error {
	le := binary.LittleEndian
	n, flags := le.Uint32(b[drvPathLen:]), le.Uint32(b[drvFlags:])
	if n > MaxDrivePath || flags&^drvForceForward != 0 || !allZero(b[drvPath+int(min(n, MaxDrivePath)):drvWatched]) || !allZero(b[drvReserved:drvCRC]) {
		return fmt.Errorf("a drive with flags %#x and a path of %d bytes, or reserved bytes in use: %w", flags, n, ErrFormat)
	}
	copy(r.UUID[:], b[drvUUID:])
	copy(r.Node[:], b[drvNode:])
	r.Epoch = le.Uint64(b[drvEpoch:])
	r.ForceForward = flags&drvForceForward != 0
	r.Path = string(b[drvPath : drvPath+n])
	copy(r.Watched[:], b[drvWatched:])
	return nil
}
