package search

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// A Mapping is a line of /proc/PID/maps.
type Mapping struct {
	Start, End uint64
	Perms      string
	Name       string // path, "[heap]", or empty
}

// Mappings reads a process' mappings.
func Mappings(pid int) ([]Mapping, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var all []Mapping
	for line := range strings.Lines(string(b)) {
		var m Mapping
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return nil, fmt.Errorf("reading the mappings of process %d: %q", pid, line)
		}
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.Start, &m.End); err != nil {
			return nil, fmt.Errorf("reading the mappings of process %d: %q: %w", pid, line, err)
		}
		m.Perms, m.Name = fields[1], strings.Join(fields[5:], " ")
		all = append(all, m)
	}
	return all, nil
}

// A Report says what of a process was searched.
type Report struct {
	Hits     []Hit
	Searched uint64   // bytes
	Closed   []string // mappings that the kernel does not let even root read
}

// Process searches all memory of a process through /proc/PID/mem, but for the
// mappings that skip names.
func (n *Needles) Process(pid int, skip func(Mapping) bool) (r Report, err error) {
	maps, err := Mappings(pid)
	if err != nil {
		return r, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return r, err
	}
	defer mem.Close() //nolint:errcheck // read only
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return r, err
	}
	defer pages.Close() //nolint:errcheck // read only
	for _, m := range maps {
		if strings.HasPrefix(m.Name, "[v") || skip(m) {
			continue // the kernel's own
		}
		where := fmt.Sprintf("process %d, mapping %x-%x %s %s", pid, m.Start, m.End, m.Perms, m.Name)
		hits, searched := n.stream(m.End-m.Start, where, m.Start, func(p []byte, off uint64) (int, error) {
			if untouched(pages, m.Start+off, len(p)) {
				clear(p)
				return len(p), nil
			}
			got, err := syscall.Pread(int(mem.Fd()), p, int64(m.Start+off))
			return max(got, 0), err
		})
		r.Hits = append(r.Hits, hits...)
		r.Searched += searched
		if searched == 0 && strings.HasPrefix(m.Perms, "r") {
			r.Closed = append(r.Closed, where)
		}
	}
	if r.Searched == 0 {
		return r, fmt.Errorf("nothing of process %d could be read", pid)
	}
	return r, nil
}

// Registers of ptrace(2) and elf.h.
const (
	ptraceGetRegset = 0x4204
	ptraceSeize     = 0x4206
	ptraceInterrupt = 0x4207
	noteGeneral     = 1     // NT_PRSTATUS
	noteExtended    = 0x202 // NT_X86_XSTATE: all vector registers
	notePrefpreg    = 2     // NT_PRFPREG: vector registers elsewhere
)

// untouched reports whether no page of a range was ever used: it reads as zeros,
// and would take memory by being read (pagemap in the kernel's admin guide).
func untouched(pagemap *os.File, at uint64, n int) bool {
	size := uint64(os.Getpagesize())
	first, last := at/size, (at+uint64(n)-1)/size
	b := make([]byte, 8*(last-first+1))
	if _, err := pagemap.ReadAt(b, int64(8*first)); err != nil {
		return false
	}
	for i := 0; i < len(b); i += 8 {
		const presentOrSwapped = 3 << 62
		if binary.LittleEndian.Uint64(b[i:])&presentOrSwapped != 0 {
			return false
		}
	}
	return true
}

// Threads are the registers of a process' threads, by thread id.
type Threads map[int][]byte

// Dump stops each thread of a process for a moment and returns its registers,
// vectors included. It must not be called by the process' parent: waiting for a
// tracee's stop and for a child's end get in each other's way (wait4(2)). See
// [RegistersCommand].
func Dump(pid int) (Threads, error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return nil, err
	}
	all := Threads{}
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return nil, err
		}
		regs, err := registers(tid)
		if errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("reading the registers of thread %d: %w", tid, err)
		}
		all[tid] = regs
	}
	return all, nil
}

// RegistersCommand is the argument with which a program that uses [Registers]
// must call [RegistersMain].
const RegistersCommand = "dump-registers"

// RegistersMain writes what Dump returns to standard output. The process id is
// the argument after RegistersCommand.
func RegistersMain(arg string) error {
	pid, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	all, err := Dump(pid)
	if err != nil {
		return err
	}
	return gob.NewEncoder(os.Stdout).Encode(all)
}

// Registers searches the registers of a process' threads. Needles that are
// longer than a register are looked for in pieces that fit one. This program is
// run once more to dump them.
func (n *Needles) Registers(pid int) (hits []Hit, threads int, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	cmd := exec.Command(self, RegistersCommand, strconv.Itoa(pid))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("dumping the registers of process %d: %w", pid, err)
	}
	var all Threads
	if err := gob.NewDecoder(bytes.NewReader(out)).Decode(&all); err != nil {
		return nil, 0, fmt.Errorf("reading the registers of process %d: %w", pid, err)
	}
	if len(all) == 0 {
		return nil, 0, fmt.Errorf("process %d has no threads", pid)
	}
	short := NewNeedles()
	for _, list := range n.heads {
		for _, e := range list {
			for at := 0; at+MinNeedle <= len(e.bytes); at += MinNeedle {
				short.Add(e.name, e.bytes[at:at+MinNeedle])
			}
		}
	}
	for tid, regs := range all {
		hits = append(hits, short.In(regs, fmt.Sprintf("registers of thread %d of process %d", tid, pid), 0)...)
	}
	return hits, len(all), nil
}

func registers(tid int) (regs []byte, err error) {
	if err := ptrace(ptraceSeize, tid, 0, nil); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, syscall.PtraceDetach(tid)) }()
	if err := ptrace(ptraceInterrupt, tid, 0, nil); err != nil {
		return nil, err
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(tid, &status, syscall.WALL, nil); err != syscall.EINTR {
			if err != nil {
				return nil, err
			}
			break
		}
	}
	for _, note := range []uintptr{noteGeneral, noteExtended, notePrefpreg} {
		buf := make([]byte, 64<<10)
		iov := syscall.Iovec{Base: &buf[0], Len: uint64(len(buf))}
		err := ptrace(ptraceGetRegset, tid, note, unsafe.Pointer(&iov))
		if errors.Is(err, syscall.EINVAL) && note != noteGeneral {
			continue // another architecture's
		}
		if err != nil {
			return nil, err
		}
		regs = append(regs, buf[:iov.Len]...)
	}
	return regs, nil
}

func ptrace(request uintptr, tid int, addr uintptr, data unsafe.Pointer) error {
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, request, uintptr(tid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// A Shared is a file of another process, mapped here: memory that
// /proc/PID/mem does not show.
type Shared struct {
	Name string // as /proc/PID/fd shows it
	file *os.File
	data []byte
}

// Bytes is the file's memory. It changes as the process writes.
func (s *Shared) Bytes() []byte { return s.data }

// Close unmaps it.
func (s *Shared) Close() error { return errors.Join(syscall.Munmap(s.data), s.file.Close()) }

// System calls that package syscall does not name; the same on all architectures.
const (
	sysPidfdOpen  = 434
	sysPidfdGetfd = 438
)

// Descriptor maps the file behind descriptor fd of a process (pidfd_getfd(2);
// root only).
func Descriptor(pid, fd int) (*Shared, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return nil, err
	}
	pidfd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_open", errno)
	}
	defer syscall.Close(int(pidfd)) //nolint:errcheck // only looked through
	own, _, errno := syscall.Syscall(sysPidfdGetfd, pidfd, uintptr(fd), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_getfd", errno)
	}
	s := &Shared{Name: name, file: os.NewFile(own, name)}
	st, err := s.file.Stat()
	if err == nil {
		s.data, err = syscall.Mmap(int(own), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping descriptor %d (%s) of process %d: %w", fd, name, pid, err), s.file.Close())
	}
	return s, nil
}

// Descriptors lists the descriptors of a process whose link satisfies want.
func Descriptors(pid int, want func(link string) bool) ([]int, error) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || !want(to) {
			continue
		}
		fd, err := strconv.Atoi(filepath.Base(l))
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// Keys maps the file of keys that a keeper holds.
func Keys(keeper int) (*Shared, error) {
	fds, err := Descriptors(keeper, IsKeysFile)
	if err != nil {
		return nil, err
	}
	if len(fds) == 0 {
		return nil, fmt.Errorf("process %d has no descriptor of a keys file", keeper)
	}
	return Descriptor(keeper, fds[0])
}

// IsKeys reports whether a mapping is of the keys file.
func IsKeys(m Mapping) bool { return IsKeysFile(m.Name) }

// IsKeysFile reports whether a name, of a mapping or a descriptor, is the keys
// file's.
func IsKeysFile(name string) bool {
	return strings.Contains(name, "secretmem") || strings.Contains(name, "vacate-keys")
}

// Memfds searches the files in memory behind a process' descriptors, whether it
// maps them or not, but for those that skip names.
func (n *Needles) Memfds(pid int, skip func(link string) bool) (hits []Hit, searched uint64, err error) {
	fds, err := Descriptors(pid, func(link string) bool { return strings.HasPrefix(link, "/memfd:") && !skip(link) })
	if err != nil {
		return nil, 0, err
	}
	for _, fd := range fds {
		s, err := Descriptor(pid, fd)
		if errors.Is(err, syscall.EBADF) || errors.Is(err, os.ErrNotExist) {
			continue // it was closed meanwhile
		}
		if err != nil {
			return nil, 0, err
		}
		hits = append(hits, n.In(s.Bytes(), fmt.Sprintf("descriptor %d (%s) of process %d", fd, s.Name, pid), 0)...)
		searched += uint64(len(s.Bytes()))
		if err := s.Close(); err != nil {
			return nil, 0, err
		}
	}
	return hits, searched, nil
}

// SlotSize is the size of a key's slot in the keys file: 64 bytes of key, then
// its schedule (docs/spec/volatile.md).
const SlotSize = 1024

// AddKey adds what a slot of the keys file holds: each quarter of the key and each
// round key by itself, as a vector register that was saved somewhere holds it. An
// empty slot adds nothing.
func (n *Needles) AddKey(name string, slot []byte) {
	for at := 0; at+MinNeedle <= len(slot); at += MinNeedle {
		if p := slot[at : at+MinNeedle]; varied(p) {
			n.Add(fmt.Sprintf("%s, byte %d of its slot", name, at), p)
		}
	}
}

// varied keeps padding and counters out of the needles: of 16 random bytes, fewer
// than ten different ones do not come.
func varied(p []byte) bool {
	seen := map[byte]bool{}
	for _, b := range p {
		seen[b] = true
	}
	return len(seen) >= 10
}
