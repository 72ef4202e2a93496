// Package disk is a disk with a volatile write cache, for tests that cut its
// power. A [Disk] holds its bytes in memory and is served over NBD, so that a
// virtual machine can use it.
//
// # What a cut leaves
//
// A write that was answered lies in the cache until a flush, or until the cache
// is full: then its oldest writes go to the medium in their order. [Supply.Cut]
// strikes all disks of a supply between two requests. Of what is in their caches
// then, each sector of each write is kept or lost at random: any subset, and
// therefore any order. A sector (512 bytes) is never torn. A write with FUA, and
// all that a flush found in the cache, is kept.
//
// So a medium is only ever in a state that a real disk could be in that obeys
// its flushes: whoever finds more lost than this allows has found a bug.
package disk

import (
	"errors"
	"fmt"
	"sync"
)

// SectorSize is the size in bytes of what is kept or lost as a whole.
const SectorSize = 512

// cacheBytes is how much unflushed data a disk holds at most.
const cacheBytes = 8 << 20

// ErrOff is returned for a request to a disk without power.
var ErrOff = errors.New("the disk has no power")

// A Supply is the power of some disks: a cut strikes all of them at one moment.
// Its methods may be called from any goroutine.
type Supply struct {
	mu    sync.Mutex // held for each request of each disk
	off   chan struct{}
	isOff bool
	disks []*Disk
}

// NewSupply returns a supply that is on.
func NewSupply() *Supply { return &Supply{off: make(chan struct{})} }

// Cut takes the power away: from now on no request is carried out or answered.
func (s *Supply) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutLocked()
}

// CutIf is Cut if off, from [Supply.Off], was not closed by a cut before.
func (s *Supply) CutIf(off <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off == off {
		s.cutLocked()
	}
}

func (s *Supply) cutLocked() {
	if !s.isOff {
		s.isOff = true
		close(s.off)
	}
}

// Off is closed by the next cut.
func (s *Supply) Off() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off
}

// Stats count what a disk was asked for since its power came on.
type Stats struct {
	Reads, Writes, FUA, Flushes int
	WrittenBytes                int64
}

// A Disk is one disk of a supply. Its zero value is not usable.
type Disk struct {
	supply *Supply // its lock guards all below
	lies   bool    // a bug that the tests plant: flushes and FUA do nothing
	media  []byte  // what survives a cut
	now    []byte  // what reads return
	cache  []write // in now, not surely in media; oldest first
	cached int     // bytes of it
	plan   plan
	stats  Stats
}

// A plan is a cut that is to come; the zero value is none.
type plan struct {
	left int  // writes and flushes, the one that triggers the cut included; 0: no plan
	done bool // that one is carried out, though never answered
}

// CutAt plans a cut of the supply at the n-th write or flush of this disk from
// now, n ≥ 1, which is never answered. It is carried out (into the cache, or from
// there to the medium) if done is set.
func (d *Disk) CutAt(n int, done bool) {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	d.plan = plan{n, done}
}

// count counts a write or flush. It reports whether to carry it out, and whether
// to answer it.
func (d *Disk) count() (carryOut, answer bool) {
	if d.supply.isOff {
		return false, false
	}
	if d.plan.left > 0 {
		if d.plan.left--; d.plan.left == 0 {
			defer d.supply.cutLocked()
			return d.plan.done, false
		}
	}
	return true, true
}

// A write is one in the cache.
type write struct {
	off  int64
	data []byte
	fua  bool // surely kept
}

// New returns a disk of zeros. The size is a multiple of SectorSize.
func New(s *Supply, size int64) *Disk {
	if size <= 0 || size%SectorSize != 0 {
		panic(fmt.Sprintf("disk: a size of %d bytes", size))
	}
	d := &Disk{supply: s, media: make([]byte, size), now: make([]byte, size)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = append(s.disks, d)
	return d
}

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return int64(len(d.now)) }

// Lie makes the disk answer flushes and FUA without doing anything, and lose the
// last writes of its cache in a cut: a bug for tests to find.
func (d *Disk) Lie() {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	d.lies = true
}

// Stats returns what the disk was asked for since its power came on.
func (d *Disk) Stats() Stats {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	return d.stats
}

func (d *Disk) check(off int64, n int) error {
	if off < 0 || off > d.Size() || int64(n) > d.Size()-off || off%SectorSize != 0 || n%SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d of a disk of %d", n, off, d.Size())
	}
	return nil
}

// Read fills p, whole sectors.
func (d *Disk) Read(p []byte, off int64) error {
	if err := d.check(off, len(p)); err != nil {
		return err
	}
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	if d.supply.isOff {
		return ErrOff
	}
	d.stats.Reads++
	copy(p, d.now[off:])
	return nil
}

// Write writes whole sectors. The disk keeps p, which must not change after.
func (d *Disk) Write(p []byte, off int64, fua bool) error {
	if err := d.check(off, len(p)); err != nil {
		return err
	}
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	// A write that a cut interrupts may have reached the cache in part: which
	// part is drawn with all else that is lost.
	carryOut, answer := d.count()
	if carryOut {
		fua = fua && answer && !d.lies
		copy(d.now[off:], p)
		d.cache = append(d.cache, write{off, p, fua})
		d.cached += len(p)
		for d.cached > cacheBytes {
			d.destage(1)
		}
		d.stats.Writes++
		d.stats.WrittenBytes += int64(len(p))
		if fua {
			d.stats.FUA++
		}
	}
	if !answer {
		return ErrOff
	}
	return nil
}

// Flush makes durable what is in the cache.
func (d *Disk) Flush() error {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	carryOut, answer := d.count()
	if carryOut {
		d.stats.Flushes++
		if !d.lies {
			d.destage(len(d.cache))
		}
	}
	if !answer {
		return ErrOff
	}
	return nil
}

// destage brings the n oldest writes of the cache to the medium.
func (d *Disk) destage(n int) {
	for _, w := range d.cache[:n] {
		copy(d.media[w.off:], w.data)
		d.cached -= len(w.data)
	}
	d.cache = append(d.cache[:0:0], d.cache[n:]...)
}
