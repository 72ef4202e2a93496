package drive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// A target is what a path was found to be, and a descriptor of it.
type target struct {
	path string
	host host
	fd   int // -1: it is neither a file nor a block device, and was not opened
	stat sys.FileStat
	dir  string // its folder in sysfs, "" for files

	kind              string
	fileSystem        string // of files
	model, serial     string
	size              int64
	logical, physical int
	readOnly          bool
	direct            bool
	dax               bool   // a file that is mapped without a page cache
	refused           int    // how often others held the fence, when it was asked for
	watch             *watch // of a drive with a volatile cache, if it can be; begun by flush
}

// open opens a path, with direct I/O where there is any. An error is about the
// path itself (missing, not permitted, busy); what it is not fit for is found
// out by examine.
func (h host) open(path string, mode sys.OpenMode) (*target, error) {
	st, err := h.stat(path)
	if err != nil {
		return nil, err
	}
	t := &target{path: path, host: h, fd: -1, stat: st}
	switch st.Type {
	case sys.RegularFile:
		t.kind = "file"
		mode &^= sys.Exclusive
	case sys.BlockDevice:
		t.kind = "block device"
	default:
		// Opening a character device or a FIFO may do things.
		t.kind = map[sys.FileType]string{sys.Directory: "folder", sys.CharDevice: "character device"}[st.Type]
		if t.kind == "" {
			t.kind = "special file"
		}
		return t, nil
	}
	if err := t.openDirect(mode); err != nil {
		return nil, err
	}
	if err := t.describe(); err != nil {
		t.close()
		return nil, fmt.Errorf("asking %s for its properties: %w", path, err)
	}
	return t, nil
}

// openDirect opens with direct I/O, unless it is known that the alignment it
// needs is more than a block. Whether it works, settle finds out.
func (t *target) openDirect(mode sys.OpenMode) (err error) {
	if align, known := sys.DirectAlign(t.path); !known || align > 0 && align <= blk.BlockSize {
		t.fd, err = sys.OpenStorage(t.path, mode|sys.Direct)
		if t.direct = err == nil; t.direct || !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	t.fd, err = sys.OpenStorage(t.path, mode)
	return err
}

// settle falls back to buffered I/O where direct I/O does not work although it
// could be asked for, and where it would go through the page cache all the same.
// It reads one block.
func (t *target) settle() error {
	if !t.direct {
		return nil
	}
	useless := t.inMemory()
	if !useless {
		_, errno := sys.Pread(t.fd, aligned(blk.BlockSize), 0) // other errors the next read will show
		useless = errno == syscall.EINVAL
	}
	if !useless {
		return nil
	}
	t.direct = false
	if err := sys.Buffered(t.fd); err != nil {
		return fmt.Errorf("opening %s without direct I/O: %w", t.path, err)
	}
	return nil
}

// describe fills in what t is. It works on the open descriptor: the path may
// name something else by now.
func (t *target) describe() (err error) {
	if t.stat, err = sys.StatFD(t.fd); err != nil {
		return err
	}
	if t.stat.Type == sys.RegularFile {
		t.size, t.logical, t.physical = t.stat.Size, blk.SectorSize, blk.BlockSize
		t.readOnly = errors.Is(sys.Writable(t.path), syscall.EROFS)
		t.dax = sys.DirectAccess(t.fd)
		t.fileSystem, err = sys.FileSystem(t.fd)
		return err
	}
	g, err := sys.BlockInfo(t.fd)
	if err != nil {
		return err
	}
	t.size, t.logical, t.physical, t.readOnly = g.Size, g.Logical, g.Physical, g.ReadOnly
	if t.dir = t.host.blockDir(t.stat.Major, t.stat.Minor); t.dir != "" {
		t.kind = kindOf(t.dir)
		t.model, t.serial = identity(t.dir)
	}
	return nil
}

func (t *target) inMemory() bool { return t.fileSystem == "tmpfs" || t.fileSystem == "ramfs" }

func (t *target) isFile() bool { return t.stat.Type == sys.RegularFile }

// flush returns the flush class and why. A volatile cache is watched from then on,
// where that can be.
func (t *target) flush(forced bool) (FlushClass, string) {
	f := flushFacts{Kind: t.kind, FileSystem: t.fileSystem, Direct: t.direct, DAX: t.dax, Model: t.model, Forced: forced, Transport: "unknown"}
	if t.dir != "" {
		f.Transport = t.host.transport(t.dir)
		f.WriteCache = attr(diskDir(t.dir), "queue/write_cache")
	}
	if f.WriteCache == "write back" && t.watch == nil {
		t.watch, f.Unwatched = t.host.watch(diskDir(t.dir), f.Transport)
	}
	f.Watching = t.watch != nil
	return classify(f)
}

// engine returns how requests reach t, which is what was asked for if that is
// possible, else the best; and why it is not a better one.
func (t *target) engine(asked string, class FlushClass) (engine, why string) {
	mapped := t.mappable(class)
	ring := error(nil)
	if mapped != nil || asked == EngineRing {
		ring = t.ringable()
	}
	switch asked {
	case EnginePread:
		return EnginePread, "the configuration asks for it"
	case EngineRing:
		if ring == nil {
			return EngineRing, ""
		}
		why = "io_uring is not possible here: " + ring.Error()
	case EngineMmap:
		if mapped != nil {
			why = "mmap is not possible here: " + mapped.Error()
		}
	}
	switch {
	case mapped == nil:
		return EngineMmap, why
	case ring == nil:
		return EngineRing, why
	case why != "":
		return EnginePread, why
	case t.inMemory():
		return EnginePread, mapped.Error()
	}
	return EnginePread, ring.Error()
}

// ringable returns nil if t can have rings, else why not. Without direct I/O a
// ring would hand every request to a thread of the kernel, which costs more than
// to do it here.
func (t *target) ringable() error {
	if !t.direct {
		return errors.New("no direct I/O")
	}
	return t.host.probeRing()
}

// confirmation is what a person types again to say that this drive is meant.
// The partitions of a disk share its serial number, so they go by their path.
func (t *target) confirmation() string {
	if t.serial == "" || t.kind == "partition" {
		return t.path
	}
	return t.serial
}

func (t *target) info(forced bool, asked string) Info {
	class, why := t.flush(forced)
	engine, without := t.engine(asked, class)
	return Info{
		Path: t.path, Kind: t.kind, Model: t.model, Serial: t.serial,
		Engine: engine, EngineWhy: without, Direct: t.direct, FenceRefused: t.refused, Flush: class, FlushWhy: why,
		Size: t.size, LogicalBlock: t.logical, PhysicalBlock: t.physical,
	}
}

// close gives up the descriptor, and with it every lock on it.
func (t *target) close() {
	t.watch.close()
	if t.fd >= 0 {
		_ = sys.CloseFD(t.fd) // nothing was written through it that was not flushed
		t.fd = -1
	}
}

// read returns n bytes at off, which is within the drive; fewer at its end.
func (t *target) read(off int64, n int) ([]byte, error) {
	lo := off &^ (blk.BlockSize - 1)
	hi := (off + int64(n) + blk.BlockSize - 1) &^ (blk.BlockSize - 1)
	buf := aligned(int(hi - lo))
	got := 0
	for got < len(buf) {
		k, errno := sys.Pread(t.fd, buf[got:], lo+int64(got))
		if errno != 0 {
			return nil, &os.PathError{Op: fmt.Sprintf("reading %d bytes at %d of", n, off), Path: t.path, Err: errno}
		}
		got += k
		if k == 0 || k%blk.SectorSize != 0 { // the end, which need not be a block's
			break
		}
	}
	buf = buf[:got]
	skip := min(int(off-lo), len(buf))
	return buf[skip:min(skip+n, len(buf))], nil
}

// write writes all of p, which is aligned memory, at off.
func (t *target) write(p []byte, off int64) error {
	for done := 0; done < len(p); {
		n, errno := sys.Pwrite(t.fd, p[done:], off+int64(done))
		if errno == 0 && n == 0 {
			errno = syscall.EIO
		}
		if errno != 0 {
			return &os.PathError{Op: fmt.Sprintf("writing %d bytes at %d of", len(p), off), Path: t.path, Err: errno}
		}
		done += n
	}
	return nil
}

func (t *target) sync() error {
	if errno := sys.Fdatasync(t.fd); errno != 0 {
		return &os.PathError{Op: "flushing", Path: t.path, Err: errno}
	}
	return nil
}

// real is the path without symbolic links, as /proc names it.
func (t *target) real() string {
	if p, err := filepath.EvalSymlinks(t.path); err == nil {
		return p
	}
	return t.path
}

// aligned returns n zero bytes that start at a multiple of a block, for direct
// I/O on control paths. Go's heap does not move.
func aligned(n int) []byte {
	b := make([]byte, n+blk.BlockSize)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (blk.BlockSize - 1))
	return b[skip : skip+n : skip+n]
}
