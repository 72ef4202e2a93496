package volatile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// A volume that gets larger gets a new block map, which begins as the old one
// stands. The keeper holds one or the other ([Link.Remap]), and that decides what
// size the volume has.

// Remap gives the keeper f, the file of a block map, to hold for slot instead of
// the one that it holds. After an error other than [ErrLink] it holds the old one.
// ENOENT: the slot has no map.
func (l *Link) Remap(slot int, f *os.File) error {
	if a := l.give(slot, Message{Kind: KindRemap}, f); a.err != nil {
		return fmt.Errorf("giving the keeper another block map for slot %d: %w", slot, a.err)
	}
	return nil
}

// Grow makes a map of the same lease with more blocks, these extents, and every
// bit that m has. The file is for [Link.Remap], next is its mapping; both are the
// caller's to close. It reads no page of m that was never written (A2), and ends
// early with ctx, whose error it returns.
//
// REQUIRES: nobody changes the bits of m.
func (m *Map) Grow(ctx context.Context, blocks uint64, extents []Extent) (f *os.File, next *Map, err error) {
	if blocks < m.header.Blocks {
		return nil, nil, fmt.Errorf("block map of lease %v: %d blocks after %d: %w", m.header.Lease, blocks, m.header.Blocks, ErrFormat)
	}
	if f, err = CreateMap(blocks, len(extents), m.header.Lease); err != nil {
		return nil, nil, err
	}
	if next, err = openMap(f); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if err = next.SetExtents(extents); err == nil {
		err = m.copyTo(ctx, next)
	}
	if err != nil {
		return nil, nil, errors.Join(err, next.Close(), f.Close())
	}
	return f, next, nil
}

// pageWords is how many words of bits a page has, which one summary bit stands for.
const pageWords = pageSize / 8

func (m *Map) copyTo(ctx context.Context, next *Map) error {
	from, to, summary := m.Words(), next.Words(), next.Summary()
	pages := (len(from) + pageWords - 1) / pageWords
	touched := m.Summary()
	for page := range pages {
		left := touched[page/64].Load()
		if left&(1<<(page%64)) == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		summary[page/64].Or(1 << (page % 64)) // A1
		copyWords(to[page*pageWords:], from[page*pageWords:min((page+1)*pageWords, len(from))])
		if over := m.header.Blocks % 64; over != 0 && page == pages-1 {
			to[len(from)-1].And(1<<over - 1) // no block that m does not have is written, whatever it says
		}
	}
	return nil
}

func copyWords(to, from []atomic.Uint64) {
	for i := range from {
		if w := from[i].Load(); w != 0 {
			to[i].Store(w)
		}
	}
}
