package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/sys"
)

// TestL1Shut: once the gate of a lease is shut, no request reaches its drive:
// none of a client that is connected, none of a queue that was made before. The
// key cannot be destroyed yet, so that the layers are all still in place. The
// bug plant.GateSkipped makes this fail.
func TestL1Shut(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{NoBlockSize: true})
	q, buf := h.queue(req.Lease, 4), buffer(t, 3*blk.BlockSize)
	all := func() (answers []error) {
		for _, op := range []blk.Op{blk.OpWrite, blk.OpRead, blk.OpFlush, blk.OpDiscard, blk.OpWriteZeroes} {
			for _, off := range []int64{0, 512} {
				r := blk.Request{Op: op, Off: off, Len: 2 * blk.BlockSize}
				switch op {
				case blk.OpRead, blk.OpWrite:
					r.Buf = buf[:r.Len]
				case blk.OpFlush:
					r.Off, r.Len = 0, 0
				}
				answers = append(answers, blk.Do(q, &r))
			}
		}
		for _, off := range []int64{0, 100} {
			answers = append(answers, c.WriteFlags(buf[:4096], off, 0), c.ReadFlags(buf[:4096], off, 0),
				c.Trim(off, 4096, 0), c.Zero(off, 4096, 0), c.Flush())
		}
		return answers
	}
	before := h.driveStats(uuid)
	for i, err := range all() {
		if err != nil {
			t.Errorf("request %d while the lease is open: %v", i, err)
		}
	}
	open := h.driveStats(uuid)
	if open.Reads == before.Reads || open.Writes == before.Writes || open.Flushes == before.Flushes {
		t.Fatalf("the drive's counters do not count: %+v, then %+v", before, open)
	}

	h.keeper.set(func() { h.keeper.wipeErr = errors.New("not now") })
	if _, err := h.close(req.Lease); err == nil {
		t.Fatal("closed without the keeper")
	}
	for i, err := range all() {
		if err == nil {
			t.Errorf("L1: request %d through a shut gate was carried out", i)
		}
	}
	if after := h.driveStats(uuid); after != open {
		t.Errorf("L1: requests reached the drive through a shut gate: %+v, before %+v", after, open)
	}
	if _, err := h.tenancy(req.Lease).path.volume.NewQueue(1); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("a new queue: %v, want ESHUTDOWN", err)
	}
	check(t, q.Close())
}

// accesses counts the reads and writes of a file (inotify(7)).
type accesses struct {
	t  *testing.T
	fd int
}

func watch(t *testing.T, path string) accesses {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	check(t, err)
	t.Cleanup(func() { check(t, syscall.Close(fd)) })
	_, err = syscall.InotifyAddWatch(fd, path, syscall.IN_ACCESS|syscall.IN_MODIFY|syscall.IN_OPEN)
	check(t, err)
	return accesses{t, fd}
}

func (a accesses) counts() (opened, read, written int) {
	a.t.Helper()
	b := make([]byte, 1<<16)
	n, err := syscall.Read(a.fd, b)
	if errors.Is(err, syscall.EAGAIN) {
		return 0, 0, 0
	}
	check(a.t, err)
	for b = b[:n]; len(b) > 0; b = b[syscall.SizeofInotifyEvent+binary.NativeEndian.Uint32(b[12:]):] {
		switch mask := binary.NativeEndian.Uint32(b[4:]); {
		case mask&syscall.IN_OPEN != 0:
			opened++
		case mask&syscall.IN_ACCESS != 0:
			read++
		case mask&syscall.IN_MODIFY != 0:
			written++
		}
	}
	return opened, read, written
}

// TestL1FenceFirst: a drive whose fence another holds is neither read nor
// written, cannot be opened, and takes no lease; nor does it while its opening
// waits.
func TestL1FenceFirst(t *testing.T) {
	h := newHost(t, func(c *Config) { c.FenceWait = time.Minute })
	path, uuid := h.enrolled(h.dir)
	holder, err := sys.OpenStorage(path, 0)
	check(t, err)
	if errno := sys.LockExclusive(holder); errno != 0 {
		t.Fatal(errno)
	}
	w := watch(t, path)

	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error, 1)
	go func() {
		_, err := h.openDrive(ctx, &ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 2})
		given <- err
	}()
	eventually(t, "the engine to try", func() bool { opened, _, _ := w.counts(); return opened > 0 })
	f, _ := h.listen()
	_, err = do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, request(0, uuid, 0), f)
	wantCode(t, err, ipc.CodeNotFound)
	_, err = h.openDriveAt(path, uuid, 1, 2)
	wantCode(t, err, ipc.CodeBusy)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeNotFound)
	cancel() // control gives up; the opening goes on
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("the call that was given up: %v", err)
	}
	eventually(t, "the engine to try again", func() bool {
		opened, read, written := w.counts()
		if read+written > 0 {
			t.Fatalf("L1: %d reads and %d writes before the fence was held", read, written)
		}
		return opened > 0
	})
	if len(h.openDrives()) != 0 {
		t.Error("L1: open without the fence")
	}

	check(t, sys.CloseFD(holder))
	eventually(t, "the drive to open", func() bool { return len(h.openDrives()) == 1 })
	if _, read, written := w.counts(); read == 0 || written == 0 {
		t.Errorf("%d reads and %d writes seen of an opening: the watch sees nothing", read, written)
	}
	h.open(request(0, uuid, 0))
}

// TestL1FenceOfAnother: two engines, one drive.
func TestL1FenceOfAnother(t *testing.T) {
	a, b := newHost(t), newHost(t)
	path, uuid := a.drive(a.dir)
	before, err := os.ReadFile(path)
	check(t, err)
	_, err = b.openDriveAt(path, uuid, 1, 2)
	wantCode(t, err, ipc.CodeBusy)
	_, err = do[ipc.DriveInfo](b, ipc.MethodEnroll, ipc.EnrollRequest{
		Path: path, Node: nodeID, UUID: uuid, Epoch: 1, Force: true, Confirm: path,
	}, nil)
	wantCode(t, err, ipc.CodeRefused)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("L1: the drive changed without its fence, %v", err)
	}
	_, err = a.closeDriveByID(uuid)
	check(t, err)
	_, err = b.openDriveAt(path, uuid, 1, 2)
	check(t, err)
}
