package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// What a process holds must be searched from another one, which may know what
// is searched for. So the engine of these tests is a process of its own, and
// the test is its keeper, its control and its client.

// Descriptors of the engine's process.
const (
	fdControl = 3 + iota
	fdKeys
	fdKeeperKeys
	fdTable
)

// engineProcess serves one control, with a keeper beside it.
func engineProcess() error {
	file := func(fd uintptr) *os.File { return os.NewFile(fd, "given") }
	mapped, err1 := volatile.OpenKeys(file(fdKeys))
	kept, err2 := volatile.OpenKeys(file(fdKeeperKeys))
	table, err3 := volatile.OpenTable(file(fdTable))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	e := New(Config{
		Keeper: newTestKeeper(kept), Keys: mapped, Table: table, Generation: 1,
		MaxConns: 8, Lock: mem.TryLock, Log: slog.New(slog.DiscardHandler), seed: knownSeed,
	})
	return ipc.Serve(context.Background(), file(fdControl), e.Handle)
}

// A process is an engine in a process of its own.
type process struct {
	host    *host          // its folder and files, not its engine
	keys    *volatile.Keys // the keeper's mapping
	control *ipc.Client
	pid     int
}

func startProcess(t *testing.T) *process {
	t.Helper()
	keys, err := volatile.CreateKeys()
	check(t, err)
	table, err := volatile.CreateTable(volatile.TableHeader{Generation: 1})
	check(t, err)
	mine, theirs, err := sys.StreamPair()
	check(t, err)
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self)
	// As the keeper starts it: a preempted thread's registers would be saved to
	// its stack, plaintext among them.
	cmd.Env = append(os.Environ(), partEnv+"=engine", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, keys.File(), keys.File(), table.File()}
	check(t, cmd.Start())
	control, err := ipc.NewClient(mine)
	check(t, errors.Join(err, mine.Close(), theirs.Close()))
	t.Cleanup(func() {
		if err := errors.Join(control.Close(), cmd.Wait(), keys.Close(), table.Close()); err != nil {
			t.Error(err)
		}
	})
	return &process{host: &host{t: t, dir: folder(t, "/dev/shm")}, keys: keys, control: control, pid: cmd.Process.Pid}
}

func (p *process) call(method string, req, resp any, file *os.File) {
	p.host.t.Helper()
	check(p.host.t, p.control.Call(p.host.t.Context(), method, req, resp, file))
	if file != nil {
		check(p.host.t, file.Close())
	}
}

// drive enrols and opens a new drive.
func (p *process) drive() (path, uuid string) {
	p.host.t.Helper()
	path, uuid = p.host.newFile(p.host.dir)
	p.call(ipc.MethodEnroll, ipc.EnrollRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1}, new(ipc.DriveInfo), nil)
	p.call(ipc.MethodDriveOpen, ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 1}, new(ipc.DriveInfo), nil)
	return path, uuid
}

func (p *process) open(req ipc.LeaseOpenRequest) (socket string) {
	p.host.t.Helper()
	f, socket := p.host.listen()
	p.call(ipc.MethodLeaseOpen, req, new(ipc.LeaseOpened), f)
	return socket
}

// search returns which of the needles lie where in the process's memory. It
// reads everything that can be written, except memfd_secret, which nobody can
// read but who maps it: that is the keys, and the test does.
func (p *process) search(needles map[string][]byte) []string {
	t := p.host.t
	t.Helper()
	for range 100 {
		found, err := p.trySearch(needles)
		if err == nil {
			return found
		}
		// A mapping that went away meanwhile. Were it there, the next try would
		// fail in the same way.
		if !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	t.Fatal("the process's memory cannot be read")
	return nil
}

func (p *process) trySearch(needles map[string][]byte) (found []string, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		return nil, err
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.pid))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	for line := range strings.Lines(string(maps)) {
		// 7f00-7f10 rw-p 00000000 00:00 0   [heap]
		f := strings.Fields(line)
		name := strings.Join(f[5:], " ")
		from, to, _ := strings.Cut(f[0], "-")
		lo, err1 := strconv.ParseInt(from, 16, 64)
		hi, err2 := strconv.ParseInt(to, 16, 64)
		switch {
		case f[1][:2] != "rw": // nothing is ever written there
			continue
		case err1 != nil || err2 != nil:
			return nil, errors.Join(err1, err2)
		case strings.Contains(name, "secretmem"), strings.Contains(name, "memfd:vacate-keys"):
			continue
		case hi-lo > 1<<32: // the race detector's shadow: terabytes of its own notes
			continue
		}
		here, err := searchIn(io.NewSectionReader(memory, lo, hi-lo), fmt.Sprintf("%s %s", f[0], name), needles)
		if err != nil {
			return nil, err
		}
		found = append(found, here...)
	}
	return found, nil
}

// searchIn returns which of the needles, of at most 64 bytes, are in r.
func searchIn(r io.Reader, where string, needles map[string][]byte) (found []string, err error) {
	const step, overlap = 1 << 20, 64
	buf := make([]byte, step+overlap)
	have := 0 // bytes of the step before, at the start of buf
	for at := 0; ; at += step {
		n, err := io.ReadFull(r, buf[have:have+step])
		for name, needle := range needles {
			if i := bytes.Index(buf[:have+n], needle); i >= 0 {
				found = append(found, fmt.Sprintf("%s at %#x of %s", name, at+i-have, where))
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("searching %s: %w", where, err)
		}
		have = copy(buf, buf[have+n-overlap:have+n])
	}
}
