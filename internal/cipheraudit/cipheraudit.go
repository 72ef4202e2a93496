// Package cipheraudit is the tenant's side of an audit of ciphertext: it draws blocks
// of a volume, gets them as they are on the node's drives, decrypts them with the key
// that the node released, and compares them with what the volume reads.
//
//  1. The key was released for that: who audits has checked it against the commitment
//     of the OPEN record (keyshare.Released.Check). Else a node could answer with what it
//     encrypts under any key, after the fact.
//  2. Blocks are drawn by the tenant, at random, one request after the other: a node
//     that knew them all before could put ciphertext where it is looked for.
//  3. A block that the node calls unwritten has to read as zeros, and counts for nothing.
//  4. A block that differs is fetched again, both ways: it may have been written in between.
//
// What that shows is that the sampled blocks lie on the drive encrypted under the
// committed key, as far as the node says what lies on its drive. It shows nothing of
// other blocks, nor of copies.
//
// The cipher is a second implementation, over crypto/aes (docs/spec/cipher.md): what
// the engine's own got wrong in the same way twice would not be found.
//
// The key's schedule lies on the Go heap: this is for a process of the tenant's that
// ends when the audit has.
package cipheraudit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
)

const (
	// BlockSize is the unit of encryption, in bytes.
	BlockSize = 4096
	// KeySize is that of a lease's key, in bytes.
	KeySize = 64
	// Batch is the most blocks that Config.Raw is asked for at once: the API takes no more.
	Batch = 256
	// DefaultSample finds one block in a thousand that is not encrypted with odds of
	// 99 % (see [Report.Odds]).
	DefaultSample = 4603

	// draws bounds how many blocks are drawn for one that was written.
	draws = 32
	// tries is how often a block is compared before it counts as another one.
	tries = 3
)

// Config is what an audit is made of.
type Config struct {
	Key    *[KeySize]byte // as released, and checked
	Blocks uint64         // of the volume, 1 ≤ Blocks
	Sample int            // written blocks to compare; 0: DefaultSample. Fewer, if no more are found
	Plain  io.ReaderAt    // the volume, as the tenant reads it

	// Raw fetches what blocks, at most Batch, are on the drives: BlockSize bytes each, or
	// none for one that was never written.
	Raw func(ctx context.Context, blocks []uint64) ([][]byte, error)
	// Progress is told how many of how many blocks were compared; nil: nobody is.
	Progress func(done, of int)

	random io.Reader // for tests; nil: crypto/rand
}

// A Report is what an audit found.
type Report struct {
	Sampled   uint64   // written blocks that were compared
	Matched   uint64   // of them: encrypted under the key
	Unwritten uint64   // drawn, never written, and read as zeros
	Of        uint64   // blocks of the volume
	Differ    []uint64 // blocks that are something else, in the order in which they were drawn
}

// Odds are the chance that this sample would have shown a block that is not encrypted, if a
// share of the written blocks, 0 ≤ share ≤ 1, were not: 1-(1-share)^Sampled.
func (r Report) Odds(share float64) float64 { return 1 - math.Pow(1-share, float64(r.Sampled)) }

// Run carries out an audit. That blocks differ is no error: the report says so. It gives
// up with the first error of Raw or Plain.
func Run(ctx context.Context, c Config) (Report, error) {
	if c.Blocks == 0 || c.Key == nil || c.Plain == nil || c.Raw == nil || c.Sample < 0 {
		return Report{}, errors.New("an audit without key, volume or node")
	}
	if c.Sample == 0 {
		c.Sample = DefaultSample
	}
	if c.random == nil {
		c.random = rand.Reader
	}
	x, err := newUnits(c.Key)
	if err != nil {
		return Report{}, err
	}
	a := &audit{Config: c, units: x, report: Report{Of: c.Blocks}}
	deck := newDeck(c.Blocks, c.random)
	for left := min(c.Blocks, uint64(c.Sample)*draws); left > 0 && a.report.Sampled < uint64(c.Sample); {
		n := min(left, Batch, uint64(c.Sample)-a.report.Sampled)
		left -= n
		blocks, err := deck.draw(int(n))
		if err != nil {
			return a.report, err
		}
		if err := a.compare(ctx, blocks); err != nil {
			return a.report, err
		}
		if c.Progress != nil {
			c.Progress(int(a.report.Sampled), c.Sample)
		}
	}
	return a.report, nil
}

type audit struct {
	Config
	units  *units
	report Report
}

// A verdict is what comparing a block came to.
type verdict int

const (
	differs verdict = iota
	matches
	unwritten
)

// compare compares blocks, those that differ several times, and counts.
func (a *audit) compare(ctx context.Context, blocks []uint64) error {
	for try := 1; len(blocks) > 0; try++ {
		raw, err := a.Raw(ctx, blocks)
		if err != nil {
			return fmt.Errorf("fetching raw blocks: %w", err)
		}
		if len(raw) != len(blocks) {
			return fmt.Errorf("the node answered with %d raw blocks, and was asked for %d", len(raw), len(blocks))
		}
		var again []uint64
		for i, n := range blocks {
			v, err := a.look(n, raw[i])
			switch {
			case err != nil:
				return err
			case v == unwritten:
				a.report.Unwritten++
			case v == matches:
				a.report.Sampled++
				a.report.Matched++
			case try < tries:
				again = append(again, n)
			default:
				a.report.Sampled++
				a.report.Differ = append(a.report.Differ, n)
			}
		}
		blocks = again
	}
	return nil
}

// look compares one block.
func (a *audit) look(n uint64, raw []byte) (verdict, error) {
	plain := make([]byte, BlockSize)
	if _, err := a.Plain.ReadAt(plain, int64(n)*BlockSize); err != nil && !errors.Is(err, io.EOF) {
		return differs, fmt.Errorf("reading block %d of the volume: %w", n, err)
	}
	if len(raw) == 0 {
		if bytes.Equal(plain, make([]byte, BlockSize)) {
			return unwritten, nil
		}
		return differs, nil
	}
	if len(raw) != BlockSize {
		return differs, fmt.Errorf("the node answered with %d bytes for raw block %d, want %d", len(raw), n, BlockSize)
	}
	decrypted := make([]byte, BlockSize)
	a.units.decrypt(decrypted, raw, n)
	if bytes.Equal(decrypted, plain) {
		return matches, nil
	}
	return differs, nil
}

// A deck has the numbers 0 to n-1 in random order, and remembers only those that were
// drawn and what they were exchanged for (Fisher-Yates).
type deck struct {
	moved  map[uint64]uint64
	at, n  uint64
	random io.Reader
}

func newDeck(n uint64, random io.Reader) *deck {
	return &deck{moved: map[uint64]uint64{}, n: n, random: random}
}

// draw draws that many. REQUIRES: so many are left.
func (d *deck) draw(count int) ([]uint64, error) {
	drawn := make([]uint64, count)
	for i := range drawn {
		k, err := rand.Int(d.random, new(big.Int).SetUint64(d.n-d.at))
		if err != nil {
			return nil, fmt.Errorf("drawing blocks: %w", err)
		}
		j := d.at + k.Uint64()
		drawn[i] = d.card(j)
		d.moved[j] = d.card(d.at)
		delete(d.moved, d.at)
		d.at++
	}
	return drawn, nil
}

func (d *deck) card(i uint64) uint64 {
	if c, ok := d.moved[i]; ok {
		return c
	}
	return i
}
