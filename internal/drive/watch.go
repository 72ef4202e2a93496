package drive

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// The flush class "watched": a drive has a volatile cache, and its flushes are
// skipped as long as that cache cannot have been lost (docs/adr/0012-watched.md).
//
//	W1: a request of a watched drive succeeds only if, after the drive had
//	    completed it, the drive had not been reset since it was opened.
//	W2: a drive that was reset once stays lost until it is closed.
//	W3: what the drive was when its flushes began to be skipped is handed to the
//	    next engine. If that finds something else, or cannot tell, the drive is lost.
//
// What is watched is an interrupt of an NVMe controller: the kernel takes its file
// out of sysfs before it resets the controller, and completes no request before it
// has made a new one (drivers/nvme/host/pci.c, nvme_dev_disable and
// nvme_setup_io_queues; kernel/irq/msi.c). And the disk, whose file goes first when
// the drive is removed.

// A Watched identifies a drive that has kept its volatile cache: after a reset, or
// when it comes back, it has another. It says nothing beyond this boot. The zero
// value: nothing is watched.
type Watched [16]byte

// A watch looks at one drive. It has no state but a descriptor, so that any
// goroutine may look.
type watch struct {
	fds    []int  // files of the interrupt and of the disk
	what   string // the controller's name
	id     Watched
	gone   func(fds []int) bool
	closed atomic.Bool
}

// errUnwatched is about drives of which nothing in sysfs tells that they were
// reset.
var errUnwatched = errors.New("its loss cannot be watched for")

// watch begins to watch the disk whose folder in sysfs is dir. Its error says, in
// words that follow on "volatile cache", why that cannot be.
func (h host) watch(dir, transport string) (*watch, error) {
	if transport != "nvme-pcie" {
		return nil, fmt.Errorf("%w: the kernel does not tell when such a drive was reset", errUnwatched)
	}
	if attr(dir, "device/transport") == "" {
		return nil, fmt.Errorf("%w: it has several paths", errUnwatched)
	}
	controller, err1 := filepath.EvalSymlinks(filepath.Join(dir, "device"))
	pci, err2 := filepath.EvalSymlinks(filepath.Join(dir, "device/device"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnwatched, err)
	}
	name := filepath.Base(controller)
	irq := firstInterrupt(pci)
	if irq == "" {
		return nil, fmt.Errorf("%w: %s shows no interrupts in %s", errUnwatched, name, filepath.Join(pci, "msi_irqs"))
	}
	w := &watch{what: name, gone: h.vanished}
	for _, path := range []string{irq, filepath.Join(dir, "dev")} {
		fd, err := sys.OpenAttribute(path)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("%w: %w", errUnwatched, err)
		}
		w.fds = append(w.fds, fd)
	}
	st, err := sys.StatFD(w.fds[0])
	if err == nil {
		w.id = watchedID(strings.TrimPrefix(dir, h.root), attr(dir, "diskseq"), filepath.Base(irq), st.Inode)
		// The state comes last: a reset that is under way now may take this
		// interrupt for granted, and come to its end with it.
		if state := attr(controller, "state"); state != "live" || w.lost() {
			err = fmt.Errorf("%s is %q", name, state)
		}
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("%w: %w", errUnwatched, err)
	}
	return w, nil
}

// firstInterrupt is the file of a PCI device's interrupt with the lowest number,
// "" if it shows none (Documentation/ABI/testing/sysfs-bus-pci).
func firstInterrupt(pci string) string {
	files, err := filepath.Glob(filepath.Join(pci, "msi_irqs/*"))
	if err != nil || len(files) == 0 {
		return ""
	}
	number := func(path string) int {
		n, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			return 1 << 30
		}
		return n
	}
	return slices.MinFunc(files, func(a, b string) int { return cmp.Compare(number(a), number(b)) })
}

// watchedID hashes what changes when a drive is reset or comes back: the numbers
// of files in sysfs are not used again (fs/kernfs/dir.c).
func watchedID(dir, diskseq, irq string, inode uint64) (id Watched) {
	h := sha256.Sum256(fmt.Appendf(nil, "vacate watched\x00%s\x00%s\x00%s\x00%d", dir, diskseq, irq, inode))
	copy(id[:], h[:])
	return id
}

// lost reports whether the drive was reset or removed since the watch began. It
// waits for nothing and allocates nothing. REQUIRES: w is not closed.
func (w *watch) lost() bool { return w.gone(w.fds) }

func (w *watch) close() {
	if w != nil && w.closed.CompareAndSwap(false, true) {
		for _, fd := range w.fds {
			_ = sys.CloseFD(fd) // it was only read
		}
	}
}

// guard makes d answer for its volatile cache, from its opening on: if it is
// watched, or was watched as before by an earlier engine, whose writes may be in
// its cache yet.
func (d *Drive) guard(before Watched) {
	w := d.t.watch
	switch {
	case before == Watched{}:
		d.guarded = d.info.Flush == FlushWatched
	case w == nil:
		d.guarded = true
		d.lose("its flushes were skipped while its volatile cache was watched, and now it cannot be: " + d.info.FlushWhy)
	case w.id != before:
		d.guarded = true
		d.lose("its controller was reset, or it was removed and came back, while no engine had it open")
	default:
		d.guarded = true
	}
	if d.guarded && w != nil {
		d.watched = w.id
	}
	if before != (Watched{}) && d.Loss() != "" {
		d.watched = before // the next engine finds the same
	}
}

// lose makes every request from now on fail (W2).
func (d *Drive) lose(why string) {
	if d.loss.CompareAndSwap(nil, &why) {
		d.limit.Store(0)
		close(d.lossSeen)
	}
}

// intact reports whether everything that d has completed is still there, as far as
// it is to be known (W1). It is asked after a completion, before that is passed on.
func (d *Drive) intact() bool {
	if !d.guarded {
		return true
	}
	if d.loss.Load() != nil {
		return false
	}
	if d.t.watch != nil && d.t.watch.lost() {
		d.lose("its controller " + d.t.watch.what + " was reset, or it was removed")
		return false
	}
	return true
}

// judge returns what becomes of a request of a drive that is guarded, which had
// this result. A disk that was removed has no sectors: reads end at once, writes
// find no space. (They find none on a drive either that promises more than it has;
// it has lost nothing.)
func (l *lane) judge(r *blk.Request, n int64, errno syscall.Errno) (int64, syscall.Errno) {
	switch {
	case errno == syscall.ENXIO, errno == syscall.ENODEV, (errno == syscall.ENOSPC || errno == 0 && n != r.Len) && l.d.t.ended():
		l.d.lose("it ends before its end: it was removed")
	case errno != 0, l.vouched && l.d.loss.Load() == nil, l.d.intact():
		return n, errno
	}
	return 0, syscall.EIO
}

// ended reports whether t is shorter than it was, or does not tell.
func (t *target) ended() bool {
	size, err := sys.End(t.fd)
	return err != nil || size < t.size
}

// Loss says how completed writes may have been lost, "" if they cannot have been.
// From then on every request fails with EIO, until the drive is closed and opened
// again. Drives whose flushes are not skipped lose nothing that was flushed, and
// are not watched.
func (d *Drive) Loss() string {
	if why := d.loss.Load(); why != nil {
		return *why
	}
	return ""
}

// Watched identifies the drive to the next engine, which hands it to Open in its
// turn. It is zero for a drive that is not watched.
func (d *Drive) Watched() Watched { return d.watched }

// lookEvery is the pause between two looks at a drive of which nothing is asked.
const lookEvery = 100 * time.Millisecond

// AwaitLoss waits until completed writes may have been lost, and returns what
// [Drive.Loss] does; or "", when ctx has ended or the drive is closed. At once it
// returns for a drive that is not watched.
func (d *Drive) AwaitLoss(ctx context.Context) string {
	if !d.guarded {
		return ""
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for d.look() {
		select {
		case <-tick.C:
		case <-d.lossSeen:
		case <-ctx.Done():
			return ""
		}
	}
	return d.Loss()
}

// look looks at d, and reports whether it is open and intact.
func (d *Drive) look() bool {
	d.mu.Lock() // Close takes the descriptor away
	defer d.mu.Unlock()
	return !d.closed && d.intact()
}
