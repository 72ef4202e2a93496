package drive

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// Info describes a drive.
type Info struct {
	Path          string
	Kind          string        // "file", "block device", "partition", "logical volume", "device-mapper", "MD RAID", "loop"
	Model, Serial string        // "" if unknown
	Engine        string        // one of those below
	EngineWhy     string        // a sentence for people: why not a better one, or not the one that was asked for; "" if it is the best
	Direct        bool          // I/O goes past the page cache
	FenceWaited   time.Duration // by Open, until the fence was held; 0 for Inspect
	FenceRefused  int           // how often others held the fence until then
	Flush         FlushClass
	FlushWhy      string // a sentence for people
	Size          int64  // bytes of the whole drive
	LogicalBlock  int    // bytes
	PhysicalBlock int    // bytes

	// Of the superblock; zero when there is none.
	UUID       ID
	Node       ID
	Epoch      uint64
	DataOffset int64 // bytes
	ExtentSize int64 // bytes
	Extents    uint32
	Repaired   []string // superblock copies that Open mended, and what they had
}

func (i *Info) add(s Superblock) {
	i.UUID, i.Node, i.Epoch = s.UUID, s.Node, s.Epoch
	i.DataOffset, i.ExtentSize, i.Extents = s.DataOffset, s.ExtentSize, s.Extents
}

// The engines: how requests reach a drive, the best first.
const (
	EngineMmap  = "mmap"     // in place; where the drive is memory, and has nothing to flush
	EngineRing  = "io_uring" // asynchronously; where there is direct I/O
	EnginePread = "pread"    // one after the other; everywhere
)

// Codes of findings; they are stable.
const (
	CodeMounted        = "mounted"         // a file system of it is mounted, or it is swapped to
	CodeHeld           = "held"            // another driver or process of this host has it exclusively
	CodeInUse          = "in-use"          // a process holds its fence
	CodePartitionTable = "partition-table" //
	CodeSignature      = "signature"       // a format of someone else's, or unknown data
	CodeEnrolled       = "enrolled"        // it is a Vacate drive already
	CodeTooSmall       = "too-small"       //
	CodeLogicalBlock   = "logical-block"   // logical blocks of over 4096 bytes
	CodeNotSupported   = "not-supported"   // no drive at all, read-only, not readable
	CodeNote           = "note"            // worth knowing
)

// A Finding is one fact about a drive.
type Finding struct {
	Code   string // as above
	Text   string // for people: what, on which object, what to do next
	Refuse bool   // enrolment must not go on
	Force  bool   // unless a person types the drive's serial number or path again
}

// An Inspection is what was found at a path.
type Inspection struct {
	Info     Info
	Findings []Finding
	// Confirm is what must be typed again to override the findings that allow
	// it: the serial number; the path of what has none, and of partitions.
	Confirm string
}

// Inspect looks at what lies at path and changes nothing: it opens for reading,
// and holds a shared lock and (on block devices) an exclusive open only for as
// long as it takes to see whether others do. Whether an enrolment belongs to
// this node it does not know; [Enroll] does.
//
// The error is about the path itself: it does not exist, or may not be opened.
func Inspect(path string) (Inspection, error) {
	t, err := thisHost.open(path, 0)
	if err != nil {
		return Inspection{}, fmt.Errorf("inspecting drive: %w", err)
	}
	defer t.close()
	if err := t.settle(); err != nil {
		return Inspection{}, fmt.Errorf("inspecting drive: %w", err)
	}
	return t.inspect(false), nil
}

// inspect collects all findings. owned says that this descriptor has the fence.
func (t *target) inspect(owned bool) Inspection {
	ins := Inspection{Info: t.info(false, ""), Confirm: t.confirmation()}
	f := findings{t: t, confirm: ins.Confirm}
	if t.fd < 0 {
		f.refuse(CodeNotSupported, "%s is a %s: give a file, a block device, a partition or a logical volume", t.path, t.kind)
		ins.Findings = f.all
		return ins
	}
	f.use(owned)
	f.shape()
	if sb, ok := f.contents(); ok {
		ins.Info.add(sb)
	}
	if t.isFile() && networkFS[t.fileSystem] {
		f.all = append(f.all, Finding{Code: CodeNote, Text: fmt.Sprintf("%s lies on %s: the lock that keeps two daemons apart may not reach other hosts, so give it to one only", t.path, t.fileSystem)})
	}
	ins.Findings = f.all
	return ins
}

var networkFS = map[string]bool{"nfs": true, "cifs": true, "smb2": true, "9p": true, "fuse": true, "ceph": true}

// findings collects what is found about one target.
type findings struct {
	t       *target
	confirm string
	all     []Finding
}

func (f *findings) refuse(code, format string, args ...any) {
	f.all = append(f.all, Finding{Code: code, Text: fmt.Sprintf(format, args...), Refuse: true})
}

// forceable adds a refusal that a person may override, and says how.
func (f *findings) forceable(code, format string, args ...any) {
	what := "path"
	if f.confirm != f.t.path {
		what = "serial number"
	}
	text := fmt.Sprintf(format, args...) + fmt.Sprintf("; to destroy that, use --force and type the %s %q", what, f.confirm)
	f.all = append(f.all, Finding{Code: code, Text: text, Refuse: true, Force: true})
}

// use finds who uses the drive now. None of this can be forced.
func (f *findings) use(owned bool) {
	t := f.t
	devs := []string(nil)
	before := len(f.all)
	if t.dir != "" {
		devs = numbers(t.dir)
		for _, point := range unique(t.host.mounts(devs)) {
			f.refuse(CodeMounted, "%s, or a part of it, is mounted at %s: unmount it first", t.path, point)
		}
		for _, h := range unique(holders(t.dir)) {
			f.refuse(CodeHeld, "%s is part of %s: stop or remove that first", t.path, h)
		}
	} else if t.isFile() {
		for _, l := range t.host.loopsOn(t.stat) {
			f.refuse(CodeHeld, "%s backs the loop device %s: detach that first (losetup -d /dev/%s)", t.path, l, l)
		}
	}
	if t.host.isSwap(t.stat, devs) {
		f.refuse(CodeMounted, "%s, or a part of it, is in use as swap: run swapoff first", t.path)
	}
	if owned {
		return
	}
	if errno := sys.LockShared(t.fd); errno == syscall.EWOULDBLOCK {
		f.refuse(CodeInUse, "%s is locked%s: it may be a drive of a running daemon; stop that first", t.path, by(t.holding()))
	}
	if locked, err := sys.RecordLocked(t.fd); err == nil && locked {
		f.refuse(CodeHeld, "%s is open in another program that locks it, a virtual machine perhaps: stop that first", t.path)
	}
	if !t.isFile() && len(f.all) == before {
		fd, err := sys.OpenStorage(t.path, sys.Exclusive)
		if errors.Is(err, syscall.EBUSY) {
			f.refuse(CodeHeld, "%s is held exclusively%s: close or unmount it there first", t.path, by(t.holding()))
		} else if err == nil {
			_ = sys.CloseFD(fd)
		}
	}
}

func by(holders []string) string {
	if len(holders) == 0 {
		return ""
	}
	return " by " + strings.Join(holders, ", ")
}

// shape finds what the drive cannot be used for as it is.
func (f *findings) shape() {
	t := f.t
	if t.readOnly {
		f.refuse(CodeNotSupported, "%s is read-only: make it writable first", t.path)
	}
	if _, err := layout(t.size); err != nil {
		code := CodeNotSupported
		if t.size < minSize {
			code = CodeTooSmall
		}
		f.refuse(code, "%s: %v", t.path, err)
	}
	if t.logical > blk.BlockSize {
		f.refuse(CodeLogicalBlock, "%s has logical blocks of %d bytes, and Vacate writes %d at a time: format the drive with smaller ones", t.path, t.logical, blk.BlockSize)
	}
}

// contents finds what would be destroyed.
func (f *findings) contents() (Superblock, bool) {
	t := f.t
	m := newMedium(t.size, t.read)
	sb, enrolled := f.own(m)
	found := len(f.all)
	others := m.signatures()
	for _, what := range others {
		f.forceable(CodeSignature, "%s holds %s", t.path, what)
	}
	tables := m.partitionTables(others)
	parts := ""
	if names := partitions(t.dir); t.dir != "" && len(names) > 0 {
		for i := range names {
			names[i] = filepath.Base(names[i])
		}
		parts = ": " + strings.Join(names, ", ")
	}
	for _, what := range tables {
		f.forceable(CodePartitionTable, "%s has %s%s", t.path, what, parts)
	}
	switch {
	case m.err != nil:
		f.refuse(CodeNotSupported, "%s cannot be read: %v; replace the drive, or see the kernel's log", t.path, m.err)
	case !enrolled && len(f.all) == found && !m.blank():
		f.forceable(CodeSignature, "%s holds unknown data: its first or last MiB is not all zeros", t.path)
	}
	return sb, enrolled
}

// own finds our own superblocks. Damaged ones count as a signature.
func (f *findings) own(m *medium) (Superblock, bool) {
	t := f.t
	if t.size < minSize {
		return Superblock{}, false
	}
	p, err := readPair(func(off int64) ([]byte, error) { return m.at(off, superblockSize), m.err }, t.size)
	if err != nil {
		return Superblock{}, false // m.err, reported by contents
	}
	if n := p.newest(); n >= 0 {
		sb := p.sb[n]
		f.forceable(CodeEnrolled, "%s is already a Vacate drive: %v of node %v, epoch %d, and may hold leases", t.path, sb.UUID, sb.Node, sb.Epoch)
		return sb, true
	}
	for which, err := range p.err {
		if !errors.Is(err, errNoSuperblock) {
			f.forceable(CodeSignature, "%s holds a damaged Vacate superblock, copy %s: %v", t.path, copyNames[which], err)
		}
	}
	return Superblock{}, false
}
