package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/drive"
	"vacate/internal/ipc"
	"vacate/internal/mem"
)

// Raw blocks, for a tenant that audits its ciphertext:
//
//	R1: only blocks that the lease has written are read. Elsewhere the drive holds
//	    what others left, be it noise.
//	R2: each block is read through the lease's device gate (law L1), and the space is
//	    not given back before the last one is read (t.counting).
//	R3: one call a lease at a time, and none beside a resize. It passes by the limits
//	    of the lease, and is bounded: MaxRawBlocks.

// rawBlocks reads the ciphertext of blocks. It waits for the drives, or for ctx.
func (e *Engine) rawBlocks(ctx context.Context, req *ipc.LeaseRawRequest) (*ipc.LeaseRaw, error) {
	if len(req.Blocks) == 0 || len(req.Blocks) > ipc.MaxRawBlocks {
		return nil, invalid("lease %s: %d blocks, want 1 to %d", req.Lease, len(req.Blocks), ipc.MaxRawBlocks)
	}
	t, ended, err := e.lease(req.Lease)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended", req.Lease)
	}
	if !t.resizing.CompareAndSwap(false, true) {
		return nil, busy("lease %s is being resized, or read: try again when that has ended", t.id)
	}
	space, from, err := e.rawSource(t, req.Blocks)
	if err != nil {
		t.resizing.Store(false)
		return nil, err
	}
	return apart(ctx, func() (*ipc.LeaseRaw, error) {
		defer t.resizing.Store(false)
		defer t.counting.Done()
		raw, err := readRaw(t, space, from, req.Blocks)
		if err != nil {
			return nil, fmt.Errorf("reading what is on the drives of lease %s: %w", t.id, err)
		}
		return raw, nil
	})
}

// rawSource is where the blocks of t are, and the path whose gate and map say which
// may be read. With it comes t.counting, the caller's. REQUIRES: t.resizing is the
// caller's.
func (e *Engine) rawSource(t *tenancy, blocks []uint64) ([]drive.SpanPiece, *path, error) {
	e.mu.Lock()
	space, err := place(t.pieces, t.size, e.rooms())
	size := t.size
	e.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range blocks {
		if n >= uint64(size)/blk.BlockSize {
			return nil, nil, invalid("lease %s has no block %d: it has %d", t.id, n, size/blk.BlockSize)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.standing(t); err != nil {
		return nil, nil, err
	}
	if t.path == nil {
		return nil, nil, busy("lease %s waits for its drives", t.id)
	}
	t.counting.Add(1)
	return space, t.path, nil
}

// readRaw reads blocks, on a thread of its own, as queues of drives want it.
func readRaw(t *tenancy, space []drive.SpanPiece, from *path, blocks []uint64) (raw *ipc.LeaseRaw, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	span, err := drive.NewSpan(space)
	if err != nil {
		return nil, err
	}
	buf, err := mem.Map(blk.BlockSize, mem.TryLock)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, buf.Close()) }()
	q, err := span.NewQueue(1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	gate, drop, err := from.volume.Gate()
	if err != nil {
		return nil, closing(t)
	}
	defer drop()
	raw = &ipc.LeaseRaw{Blocks: make([][]byte, len(blocks))}
	for i, n := range blocks {
		if !isWritten(from.blocks, n) {
			continue
		}
		if !gate.Enter() {
			return nil, closing(t)
		}
		err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: int64(n) * blk.BlockSize, Len: blk.BlockSize, Buf: buf.Bytes()})
		gate.Leave()
		if err != nil {
			return nil, err
		}
		raw.Blocks[i] = bytes.Clone(buf.Bytes())
	}
	return raw, nil
}

func isWritten(m *blockmap.Map, n uint64) (yes bool) {
	m.Extents(int64(n)*blk.BlockSize, blk.BlockSize, func(_, _ int64, written bool) bool {
		yes = written
		return false
	})
	return yes
}
