package node

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vacate/internal/extent"
	"vacate/internal/lease"
)

// A room is a drive that a lease may be placed on.
type room struct {
	uuid, path  string
	extentBytes int64
	space       *extent.Allocator
}

func (r room) freeBytes() int64 { return int64(r.space.FreeCount()) * r.extentBytes }

// extents is how many extents of the drive hold size bytes.
func (r room) extents(size int64) int64 { return (size-1)/r.extentBytes + 1 }

// place takes size bytes of space: on the drive with the most free space, where
// it is enough, or else on as few drives as possible, those with the most free
// space first. Where it fails, nothing is taken.
func place(rooms []room, size int64) ([]extent.Piece, error) {
	rooms = slices.Clone(rooms)
	slices.SortFunc(rooms, func(a, b room) int {
		return cmp.Or(cmp.Compare(b.freeBytes(), a.freeBytes()), cmp.Compare(a.uuid, b.uuid))
	})
	for _, r := range rooms {
		if want := r.extents(size); want <= int64(r.space.FreeCount()) {
			if pieces := take(nil, r, uint32(want)); len(pieces) <= lease.MaxPieces {
				return pieces, nil
			} else {
				giveBack(rooms, pieces)
			}
		}
	}
	var pieces []extent.Piece
	missing := size
	for _, r := range rooms {
		if missing <= 0 || r.space.FreeCount() == 0 {
			continue
		}
		n := min(r.extents(missing), int64(r.space.FreeCount()))
		pieces = take(pieces, r, uint32(n))
		missing -= n * r.extentBytes
	}
	switch {
	case missing > 0:
		giveBack(rooms, pieces)
		return nil, noRoom(rooms, size)
	case len(pieces) > lease.MaxPieces:
		giveBack(rooms, pieces)
		return nil, &Error{Kind: Full, Err: extent.ErrFull,
			Text: fmt.Sprintf("%s does not fit: the free space is in too many pieces, a lease has at most %d", bytesText(size), lease.MaxPieces),
			Next: "close other leases, or ask for less"}
	}
	return pieces, nil
}

// take allocates n free extents of r.
func take(pieces []extent.Piece, r room, n uint32) []extent.Piece {
	ranges, err := r.space.Alloc(n)
	if err != nil {
		panic(fmt.Sprintf("node: placing on drive %s: %v", r.uuid, err)) // it was counted before
	}
	for _, rg := range ranges {
		pieces = append(pieces, extent.Piece{Drive: r.uuid, Range: rg})
	}
	return pieces
}

func giveBack(rooms []room, pieces []extent.Piece) {
	for _, p := range pieces {
		i := slices.IndexFunc(rooms, func(r room) bool { return r.uuid == p.Drive })
		rooms[i].space.Free(p.Range)
	}
}

// noRoom says how much is free, and where.
func noRoom(rooms []room, size int64) error {
	if len(rooms) == 0 {
		return &Error{Kind: Full, Err: extent.ErrFull, Text: fmt.Sprintf("%s does not fit: no drive is ready", bytesText(size)),
			Next: "see `vacate drive list`, or enrol a drive"}
	}
	const shown = 4
	var where []string
	total := int64(0)
	for i, r := range rooms { // by free space
		total += r.freeBytes()
		if i < shown {
			where = append(where, fmt.Sprintf("%s (%d bytes) on %s", bytesText(r.freeBytes()), r.freeBytes(), r.path))
		}
	}
	free := strings.Join(where, ", ")
	if len(rooms) > shown {
		free = fmt.Sprintf("%s in all; most of it: %s", bytesText(total), free)
	}
	return &Error{Kind: Full, Err: extent.ErrFull, Text: fmt.Sprintf("%s does not fit; free: %s", bytesText(size), free),
		Next: "ask for less, close a lease, or enrol another drive"}
}
