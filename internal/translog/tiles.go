package translog

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
)

// What a checkpoint, a tile and an entry bundle can be at most, in bytes.
const (
	maxCheckpoint = 64 << 10
	maxTile       = layout.TileWidth * hashSize
	maxBundle     = layout.EntryBundleWidth * (2 + 1<<16 - 1)
	hashSize      = 32
)

// tiles reads a log by the resources of C2SP tlog-tiles, wherever they lie. It
// is the [Reader] that all others are made of.
type tiles struct {
	// fetch returns the resource of a path ("checkpoint", "tile/0/000.p/7"), of
	// at most limit bytes; ErrNotFound where there is none.
	fetch func(ctx context.Context, path string, limit int64) ([]byte, error)
}

// Checkpoint implements [Reader].
func (t tiles) Checkpoint(ctx context.Context) ([]byte, error) {
	cp, err := t.fetch(ctx, layout.CheckpointPath, maxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("reading the log's checkpoint: %w", err)
	}
	return cp, nil
}

// size returns the size of the newest checkpoint.
func (t tiles) size(ctx context.Context) (uint64, error) {
	cp, err := t.Checkpoint(ctx)
	if err != nil {
		return 0, err
	}
	_, n, _, err := head(cp)
	return n, err
}

// Proof implements [Reader].
func (t tiles) Proof(ctx context.Context, index, size uint64) ([][32]byte, error) {
	b, err := t.builder(ctx, size)
	if err != nil {
		return nil, err
	}
	path, err := b.InclusionProof(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("proving leaf %d in the tree of %d: %w", index, size, err)
	}
	return hashes(path), nil
}

// Consistency implements [Reader].
func (t tiles) Consistency(ctx context.Context, from, to uint64) ([][32]byte, error) {
	if from > to {
		return nil, fmt.Errorf("proving that the tree of %d begins the one of %d: it is larger", from, to)
	}
	if from == 0 || from == to {
		return nil, nil
	}
	b, err := t.builder(ctx, to)
	if err != nil {
		return nil, err
	}
	path, err := b.ConsistencyProof(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("proving that the tree of %d begins the one of %d: %w", from, to, err)
	}
	return hashes(path), nil
}

func hashes(path [][]byte) [][32]byte {
	out := make([][32]byte, len(path))
	for i, h := range path {
		out[i] = [32]byte(h)
	}
	return out
}

// builder makes proofs in the tree of size, which need not be the size of any
// checkpoint: a tile of that tree begins every wider one of the same place.
func (t tiles) builder(ctx context.Context, size uint64) (*client.ProofBuilder, error) {
	now, err := t.size(ctx)
	if err != nil {
		return nil, err
	}
	if size > now {
		return nil, fmt.Errorf("proving in the tree of %d: the newest checkpoint has %d: %w", size, now, ErrNotFound)
	}
	return client.NewProofBuilder(ctx, size, func(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
		return t.tile(ctx, level, index, width, now)
	})
}

// tile reads the tile of a width (0 is whole) of a log of which now records may
// be read.
func (t tiles) tile(ctx context.Context, level, index uint64, width uint8, now uint64) ([]byte, error) {
	raw, err := t.widest(ctx, func(w uint8) string { return layout.TilePath(level, index, w) },
		layout.PartialTileSize(level, index, now), maxTile)
	if err != nil {
		return nil, err
	}
	want := full(width) * hashSize
	if len(raw) < want || len(raw)%hashSize != 0 {
		return nil, fmt.Errorf("tile %s has %d bytes, need %d", layout.TilePath(level, index, width), len(raw), want)
	}
	return raw[:want], nil
}

// bundle reads the entries of a width of a log of which now records may be read.
func (t tiles) bundle(ctx context.Context, index uint64, width uint8, now uint64) ([]byte, error) {
	raw, err := t.widest(ctx, func(w uint8) string { return layout.EntriesPath(index, w) },
		layout.PartialTileSize(0, index, now), maxBundle)
	if err != nil {
		return nil, err
	}
	rest := raw
	for i := range full(width) {
		if _, rest, err = cutLeaf(rest); err != nil {
			return nil, fmt.Errorf("reading entry %d of %s: %w", i, layout.EntriesPath(index, width), err)
		}
	}
	return raw[:len(raw)-len(rest)], nil
}

// widest reads a resource as wide as the newest checkpoint has it. A partial one
// may have been deleted since for the whole one. No other width is ever read: a
// partial tile that no checkpoint committed to may have been left by a crash, and be of
// records that were never added.
func (t tiles) widest(ctx context.Context, path func(uint8) string, now uint8, limit int64) ([]byte, error) {
	raw, err := t.fetch(ctx, path(now), limit)
	if now != 0 && errors.Is(err, ErrNotFound) {
		raw, err = t.fetch(ctx, path(0), limit)
	}
	return raw, err
}

// full is the number of entries of a tile of a width, where 0 is whole.
func full(width uint8) int {
	if width == 0 {
		return layout.TileWidth
	}
	return int(width)
}

// Leaf implements [Reader].
func (t tiles) Leaf(ctx context.Context, index uint64) (leaf []byte, err error) {
	err = t.Leaves(ctx, index, index+1, func(_ uint64, l []byte) error {
		leaf = bytes.Clone(l)
		return nil
	})
	return leaf, err
}

// Leaves implements [Reader].
func (t tiles) Leaves(ctx context.Context, from, to uint64, each func(uint64, []byte) error) error {
	now, err := t.size(ctx)
	if err != nil {
		return err
	}
	return t.leaves(ctx, from, to, now, each)
}

// leaves is Leaves for a log of which now records may be read.
func (t tiles) leaves(ctx context.Context, from, to, now uint64, each func(uint64, []byte) error) error {
	if from > to || to > now {
		return fmt.Errorf("reading leaves %d to %d of a log of %d: %w", from, to, now, ErrNotFound)
	}
	for at := from; at < to; {
		bundle := at / layout.EntryBundleWidth
		first := bundle * layout.EntryBundleWidth
		end := min(first+layout.EntryBundleWidth, to)
		raw, err := t.bundle(ctx, bundle, uint8((end-first)%layout.EntryBundleWidth), now)
		if err != nil {
			return fmt.Errorf("reading leaf %d: %w", at, err)
		}
		for i := first; i < end; i++ {
			var leaf []byte
			if leaf, raw, err = cutLeaf(raw); err != nil {
				return fmt.Errorf("reading leaf %d: %w", i, err)
			}
			if i < at {
				continue
			}
			if err := each(i, leaf); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}

// cutLeaf takes the first entry from a bundle: its length in two bytes,
// big-endian, and the entry (C2SP tlog-tiles, "Log entries").
func cutLeaf(b []byte) (leaf, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errors.New("the bundle of entries ends early")
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return nil, nil, errors.New("the bundle of entries ends within an entry")
	}
	return b[:n], b[n:], nil
}

// appendLeaf is the inverse of cutLeaf. REQUIRES: len(leaf) < 1<<16.
func appendLeaf(b, leaf []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
}

// head reads origin, size and root (base64) of a checkpoint, and verifies nothing but
// their form (C2SP tlog-checkpoint).
func head(cp []byte) (origin string, size uint64, root string, err error) {
	lines := bytes.SplitN(cp, []byte("\n"), 4)
	if len(lines) < 4 || len(lines[0]) == 0 {
		return "", 0, "", errors.New("reading a checkpoint: it has no three lines")
	}
	size, err = strconv.ParseUint(string(lines[1]), 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != string(lines[1]) {
		return "", 0, "", fmt.Errorf("reading a checkpoint: %.30q is no size", lines[1])
	}
	// The decoder passes over a carriage return.
	raw, err := base64.StdEncoding.DecodeString(string(lines[2]))
	if err != nil || len(raw) != hashSize || base64.StdEncoding.EncodeToString(raw) != string(lines[2]) {
		return "", 0, "", fmt.Errorf("reading a checkpoint: %.60q is no hash", lines[2])
	}
	return string(lines[0]), size, string(lines[2]), nil
}
