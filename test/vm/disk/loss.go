package disk

import (
	"fmt"
	"math/rand/v2"
)

// A Loss says what a cut did to a disk.
type Loss struct {
	Mode          string
	Writes        int // that were in the cache
	Sectors, Lost int // of them; a sector counts once a write
}

func (l Loss) String() string {
	return fmt.Sprintf("%s: %d of %d sectors of %d writes", l.Mode, l.Lost, l.Sectors, l.Writes)
}

// PowerOn decides what the cut left on each disk, in the order in which they
// were made, and gives the disks power again.
func (s *Supply) PowerOn(r *rand.Rand) []Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isOff {
		panic("disk: PowerOn without a cut")
	}
	var losses []Loss
	for _, d := range s.disks {
		losses = append(losses, d.settle(r))
	}
	s.off, s.isOff = make(chan struct{}), false
	return losses
}

// settle goes through the cache in its order and keeps or loses each sector.
func (d *Disk) settle(r *rand.Rand) Loss {
	mode := modes[r.IntN(len(modes))]
	if d.lies { // a file system then finds nothing wrong: only what was promised on it is missing
		mode = lastLost
	}
	loss := Loss{Mode: mode.name, Writes: len(d.cache)}
	keep := mode.draw(r, len(d.cache))
	for i, w := range d.cache {
		for at := 0; at < len(w.data); at += SectorSize {
			loss.Sectors++
			if w.fua || keep(i) {
				copy(d.media[w.off+int64(at):], w.data[at:at+SectorSize])
			} else {
				loss.Lost++
			}
		}
	}
	for _, w := range d.cache {
		copy(d.now[w.off:], d.media[w.off:w.off+int64(len(w.data))])
	}
	d.cache, d.cached, d.plan, d.stats = nil, 0, plan{}, Stats{}
	return loss
}

// A mode is a way to lose. Sectors that are drawn one by one almost never leave
// all, none, or the first of many writes: so these are drawn too.
type mode struct {
	name string
	// draw returns what is asked once for each sector of each of n writes, with
	// the write's index.
	draw func(r *rand.Rand, n int) func(i int) (keep bool)
}

var modes = []mode{
	{"all lost", func(*rand.Rand, int) func(int) bool {
		return func(int) bool { return false }
	}},
	{"none lost", func(*rand.Rand, int) func(int) bool {
		return func(int) bool { return true }
	}},
	lastLost,
	{"the first lost", func(r *rand.Rand, n int) func(int) bool {
		lost := r.IntN(n + 1)
		return func(i int) bool { return i >= lost }
	}},
	{"one write lost", func(r *rand.Rand, n int) func(int) bool {
		lost := r.IntN(n + 1)
		return func(i int) bool { return i != lost }
	}},
	{"whole writes lost", func(r *rand.Rand, n int) func(int) bool {
		kept := make([]bool, n)
		for i := range kept {
			kept[i] = r.IntN(2) == 0
		}
		return func(i int) bool { return kept[i] }
	}},
	{"half of the sectors lost", sectors(0.5)},
	{"few sectors lost", sectors(0.95)},
	{"most sectors lost", sectors(0.05)},
}

var lastLost = mode{"the last lost", func(r *rand.Rand, n int) func(int) bool {
	kept := r.IntN(n + 1)
	return func(i int) bool { return i < kept }
}}

func sectors(keep float64) func(*rand.Rand, int) func(int) bool {
	return func(r *rand.Rand, _ int) func(int) bool {
		return func(int) bool { return r.Float64() < keep }
	}
}

// Pieces calls yield for everything that the disk holds anywhere: its medium,
// and each write in its cache, also those that the next cut will lose. The bytes
// must not be kept or changed.
func (d *Disk) Pieces(yield func(where string, off int64, p []byte)) {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	yield("medium", 0, d.media)
	for _, w := range d.cache {
		yield("write cache", w.off, w.data)
	}
}

// Fill writes the whole disk from p, past its cache, as a factory would.
func (d *Disk) Fill(p []byte) error {
	if len(p) != len(d.media) {
		return fmt.Errorf("filling a disk of %d bytes with %d", len(d.media), len(p))
	}
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	copy(d.media, p)
	copy(d.now, p)
	d.cache, d.cached = nil, 0
	return nil
}
