// Package drive does block I/O on a local drive: a file, block device, partition
// or logical volume.
//
// [Inspect] looks at what is there, [Enroll] makes it a drive of this node, and
// [Open] takes its fence and gives the [Drive], a [blk.Device] over the area for
// tenants' data. [NewSpan] makes one device of pieces of several.
//
//	drive:  superblock A | rest of 1 MiB, free | extent 0 … extent n−1 | 1 MiB, free, and superblock B
//	                                           0 … Geometry().Size
//
// # Ownership
//
// Until Open has the fence of a drive, no request is made of it; the fence is
// given up by Close, which refuses while queues are open, and by the end of the
// process, once its last I/O has ended.
//
// # Buffers
//
// Requests are whole blocks of 4096 bytes, from memory that starts at a block:
// a direct read or write goes to the device as it is.
//
// # Durability
//
// A completed write survives the end of this process. Whether it survives the
// loss of power depends on the drive, and nothing above may rely on it: power
// loss ends every lease. What a flush does is the drive's [FlushClass].
package drive

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// OpenOptions say which drive is expected at a path.
type OpenOptions struct {
	Node, UUID ID
	// Epoch is the state folder's. The drive may carry Epoch-1, too: its writer
	// ended before it was done. NewEpoch, Epoch or Epoch+1, is written to both
	// superblocks.
	Epoch, NewEpoch uint64
	// ForceForward makes the flush class "forward" whatever was probed.
	ForceForward bool
	// Engine is the engine to use, if the drive can; "" is the best that it can.
	Engine string
	// Watched is what an engine before this one watched, as it said then; zero: nothing.
	Watched Watched
	// FenceWait is how long the fence is waited for; 0 means 5 seconds.
	FenceWait time.Duration
}

const defaultFenceWait = 5 * time.Second

// Errors of Open, besides [ErrFenced] and those of the operating system.
var (
	// ErrForeign: the drive is another one, or another node's.
	ErrForeign = errors.New("another drive or another node's")
	// ErrEpoch: drive and state folder do not belong together.
	ErrEpoch = errors.New("drive and state folder do not belong together")
	// ErrDamaged: no superblock can be trusted.
	ErrDamaged = errors.New("the superblocks are damaged")
	// ErrNotEnrolled: there is no superblock.
	ErrNotEnrolled = errors.New("not enrolled")
	// ErrShrunk: the drive is shorter than when it was enrolled.
	ErrShrunk = errors.New("the drive has shrunk")
)

// ErrQueues is wrapped by the error of a Close that was refused.
var ErrQueues = errors.New("queues are open")

// A Drive is an open drive whose fence is held. It is a [blk.Device] over the
// extents, in order; its methods may be called from any goroutine.
type Drive struct {
	t      *target
	info   Info
	flush  bool   // flushes go to the kernel
	offset int64  // bytes: where the data area starts
	size   int64  // bytes of the data area
	area   []byte // the data area, mapped; nil unless the engine is "mmap"

	// limit is the end of the smallest size that was seen of a file, in bytes.
	// What lies past it was lost, although a later write would bring the space
	// back, filled with zeros.
	limit atomic.Int64

	guarded  bool                   // its completed writes may be lost, and are watched (watch.go)
	watched  Watched                // for the next engine
	loss     atomic.Pointer[string] // how they were lost; nil: they were not
	lossSeen chan struct{}          // closed when loss is set

	lastError atomic.Pointer[blk.Error]

	mu     sync.Mutex
	lanes  map[*lane]struct{} // of the open queues
	gone   Stats              // of the queues that were closed
	closed bool
}

// Open opens an enrolled drive. It takes the fence first, for which it waits
// until o.FenceWait has passed ([FenceError]) or ctx is done; then reads both
// superblocks, of which one may be damaged and is mended; and writes
// o.NewEpoch. A drive that is not the expected one is not changed.
func Open(ctx context.Context, path string, o OpenOptions) (*Drive, error) {
	return thisHost.openDrive(ctx, path, o)
}

func (h host) openDrive(ctx context.Context, path string, o OpenOptions) (*Drive, error) {
	if o.NewEpoch != o.Epoch && o.NewEpoch != o.Epoch+1 {
		return nil, fmt.Errorf("opening drive %s: epoch %d cannot follow epoch %d", path, o.NewEpoch, o.Epoch)
	}
	wait := o.FenceWait
	if wait == 0 {
		wait = defaultFenceWait
	}
	start := time.Now()
	t, err := h.fence(ctx, path, wait)
	if err != nil {
		return nil, fmt.Errorf("opening drive: %w", err)
	}
	waited := time.Since(start)
	sb, repaired, err := t.claim(o)
	if err != nil {
		t.close()
		return nil, fmt.Errorf("opening drive %s: %w", path, err)
	}
	d := &Drive{
		t: t, info: t.info(o.ForceForward, o.Engine),
		offset: sb.DataOffset, size: int64(sb.Extents) * sb.ExtentSize,
		lanes: make(map[*lane]struct{}), lossSeen: make(chan struct{}),
	}
	d.flush = d.info.Flush == FlushForward
	d.limit.Store(t.size)
	d.guard(o.Watched)
	d.mapArea()
	d.info.add(sb)
	d.info.Repaired, d.info.FenceWaited = repaired, waited
	return d, nil
}

// claim checks that t, whose fence is held, is the drive that o expects, and
// writes the new epoch.
func (t *target) claim(o OpenOptions) (Superblock, []string, error) {
	if t.size < minSize {
		return Superblock{}, nil, fmt.Errorf("%w: %d bytes are left; replace it, its leases are lost", ErrShrunk, t.size)
	}
	p, err := readPair(func(off int64) ([]byte, error) { return t.read(off, superblockSize) }, t.size)
	if err != nil {
		return Superblock{}, nil, err
	}
	n := p.newest()
	if n < 0 {
		if errors.Is(p.err[copyA], errNoSuperblock) && errors.Is(p.err[copyB], errNoSuperblock) {
			return Superblock{}, nil, fmt.Errorf("%w: enroll it first, or give the path of drive %v", ErrNotEnrolled, o.UUID)
		}
		return Superblock{}, nil, fmt.Errorf("%w, copy %s: %w; copy %s: %w: its leases are lost; enroll it again with --force, or replace it",
			ErrDamaged, copyNames[copyA], p.err[copyA], copyNames[copyB], p.err[copyB])
	}
	sb := p.sb[n]
	both := p.err[copyA] == nil && p.err[copyB] == nil
	switch {
	case both && !p.agree():
		return sb, nil, fmt.Errorf("%w: the two copies are of different drives, %v and %v: find out which one this is, then enroll it again with --force",
			ErrDamaged, p.sb[copyA].UUID, p.sb[copyB].UUID)
	case sb.Node != o.Node:
		return sb, nil, fmt.Errorf("%w: it is drive %v of node %v, and this is node %v: move it back, or enroll it here with --force", ErrForeign, sb.UUID, sb.Node, o.Node)
	case sb.UUID != o.UUID:
		return sb, nil, fmt.Errorf("%w: it is drive %v, expected was %v: has a device changed its name?", ErrForeign, sb.UUID, o.UUID)
	case sb.Epoch != o.Epoch && sb.Epoch+1 != o.Epoch:
		return sb, nil, fmt.Errorf("%w: the drive has epoch %d, the state folder %d: one of them was restored from a copy; start the daemon with the state folder that goes with this drive", ErrEpoch, sb.Epoch, o.Epoch)
	case sb.Size > t.size:
		return sb, nil, fmt.Errorf("%w from %d to %d bytes: bring it back to its size, or replace it", ErrShrunk, sb.Size, t.size)
	}
	repaired, err := t.update(sb, &p, n, o.NewEpoch)
	sb.Epoch = o.NewEpoch
	return sb, repaired, err
}

// update writes sb with a new epoch to both copies: the one that does not count
// first, so that at every moment one is intact and as new as the other was.
func (t *target) update(sb Superblock, p *pair, newest int, epoch uint64) (repaired []string, err error) {
	for which, err := range p.err {
		if err != nil {
			repaired = append(repaired, fmt.Sprintf("superblock copy %s: %v", copyNames[which], err))
		} else if p.sb[which].Epoch != sb.Epoch {
			repaired = append(repaired, fmt.Sprintf("superblock copy %s: epoch %d, behind %d", copyNames[which], p.sb[which].Epoch, sb.Epoch))
		}
	}
	if repaired == nil && sb.Epoch == epoch {
		return nil, nil // nothing to write, and nothing for a take-over to wait for
	}
	sb.Epoch = epoch
	for _, which := range []int{1 - newest, newest} {
		if err := t.writeSuperblock(&sb, which); err != nil {
			return nil, err
		}
	}
	return repaired, nil
}

// Renew does for a drive that is open, with its fence held, what Open does with
// the epoch: it checks the superblocks against o, mends them, and writes
// o.NewEpoch. I/O goes on meanwhile.
func (d *Drive) Renew(o OpenOptions) error {
	if o.NewEpoch != o.Epoch && o.NewEpoch != o.Epoch+1 {
		return fmt.Errorf("renewing drive %s: epoch %d cannot follow epoch %d", d.info.Path, o.NewEpoch, o.Epoch)
	}
	if _, _, err := d.t.claim(o); err != nil {
		return fmt.Errorf("renewing drive %s: %w", d.info.Path, err)
	}
	return nil
}

// Info describes the drive as it was when it was opened.
func (d *Drive) Info() Info { return d.info }

// Geometry implements [blk.Device].
func (d *Drive) Geometry() blk.Geometry {
	return blk.Geometry{Size: d.size, Logical: blk.BlockSize, Physical: max(blk.BlockSize, d.info.PhysicalBlock)}
}

// Stats are a drive's counters since it was opened. A request that failed counts
// under Errors only.
type Stats struct {
	Reads, Writes, ReadBytes, WriteBytes, Flushes, Errors uint64
	LastError                                             string // "" if none
}

// Stats adds up the counters of all queues.
func (d *Drive) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.gone
	for l := range d.lanes {
		l.count.addTo(&s)
	}
	if e := d.lastError.Load(); e != nil {
		s.LastError = e.Error()
	}
	return s
}

// Close gives up the fence. While queues are open it fails with [ErrQueues], and
// keeps the drive open: their I/O would outlive the fence. Any other error comes
// from a drive that is closed all the same (close(2)). It may wait for the file
// system below.
func (d *Drive) Close() error {
	fd, err := d.shut()
	if err != nil || fd < 0 {
		return err
	}
	d.t.watch.close()
	if d.area != nil { // it holds the fence, too
		err = sys.Unmap(d.area)
		d.area = nil
	}
	if err = errors.Join(err, sys.CloseFD(fd)); err != nil {
		return fmt.Errorf("closing drive %s: %w", d.info.Path, err)
	}
	return nil
}

// shut refuses new queues and returns the descriptor, -1 if that was done before.
func (d *Drive) shut() (fd int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.lanes); n > 0 {
		return -1, fmt.Errorf("closing drive %s: %d: %w", d.info.Path, n, ErrQueues)
	}
	if d.closed {
		return -1, nil
	}
	d.closed = true
	fd = d.t.fd
	d.t.fd = -1
	return fd, nil
}
