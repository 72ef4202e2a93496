package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// searched reports whether the engine looks for a drive on its own.
func (h *host) searched(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.Engine.drives[uuid]
	return d != nil && d.search != nil
}

// TestL8MissingDrive: a drive that is away is looked for; its leases keep their
// keys and wait, and are served when it comes back, or when control knows where.
func TestL8MissingDrive(t *testing.T) {
	for name, back := range map[string]func(h *host, away, path, uuid string) error{
		"it comes back": func(_ *host, away, path, _ string) error { return os.Rename(away, path) },
		"control knows where": func(h *host, away, _, uuid string) error {
			_, err := h.openDriveAt(away, uuid, 1, 2)
			return err
		},
		"after a wrong path": func(h *host, away, path, uuid string) error {
			_, err := h.openDriveAt(path+"x", uuid, 1, 2)
			if err == nil || !h.searched(uuid) {
				return fmt.Errorf("the wrong path: %w; searched: %v", err, h.searched(uuid))
			}
			if _, err := h.openDriveAt(away, uuid, 7, 8); err == nil || !h.searched(uuid) {
				return fmt.Errorf("a wrong epoch: %w; searched: %v", err, h.searched(uuid))
			}
			return os.Rename(away, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			path, uuid := h.drive(h.dir)
			req := request(0, uuid, 0)
			socket := h.open(req)
			c, _ := dial(t, socket, nbdclient.Options{})
			want := bytes.Repeat([]byte{9}, 8192)
			check(t, c.WriteFlags(want, 4096, 0))
			h.crash()()
			check(t, os.Rename(path, path+".away"))
			h.takeOver()
			time.Sleep(30 * time.Millisecond)
			if list := h.list().Leases; len(list) != 1 || list[0].Erased || h.keeper.keys.Empty(req.Slot) {
				t.Fatalf("L8: without its drive the lease is %+v", list)
			}
			f, _ := h.listen()
			_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, request(1, uuid, 1), f)
			wantCode(t, err, ipc.CodeNotFound)
			check(t, back(h, path+".away", path, uuid))
			got := make([]byte, len(want))
			c, _ = dial(t, socket, nbdclient.Options{Timeout: time.Minute})
			check(t, c.ReadFlags(got, 4096, 0))
			if !bytes.Equal(got, want) {
				t.Error("L8: the lease reads other bytes")
			}
			h.restart() // the table knows the path that counts
			c, _ = dial(t, socket, nbdclient.Options{Timeout: time.Minute})
			check(t, c.ReadFlags(got, 4096, 0))
		})
	}
}

// TestSearchGivesWay: a call of control's comes before the search that waits for
// the fence, and where it gives up, the search goes on.
func TestSearchGivesWay(t *testing.T) {
	h := newHost(t, func(c *Config) { c.FenceWait = 20 * time.Millisecond })
	path, uuid := h.drive(h.dir)
	h.open(request(0, uuid, 0))
	h.crash()()
	release := lockedBy(t, path)
	h.takeOver()
	for range 3 {
		_, err := h.openDriveAt(path, uuid, 1, 2)
		wantCode(t, err, ipc.CodeBusy) // the fence
		if err == nil || !strings.Contains(err.Error(), "in use") || !h.searched(uuid) {
			t.Errorf("%v; searched: %v", err, h.searched(uuid))
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = h.openDrive(ended, &ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 2})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
		eventually(t, "the search to go on", func() bool { return h.searched(uuid) })
	}
	_, err := h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeBusy) // its lease
	release()
	eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
	info, err := h.openDriveAt(path, uuid, 1, 2)
	if err != nil || info.Epoch != 2 {
		t.Errorf("renewing what the search has opened: %+v, %v", info, err)
	}
}

// TestSearchIsGivenUp: closing a drive that is looked for, and that no lease
// needs, ends that for good.
func TestSearchIsGivenUp(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.crash()()
	check(t, os.Rename(path, path+".away"))
	h.takeOver()
	_, err := h.closeDriveByID(uuid)
	check(t, err)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeNotFound)
	check(t, os.Rename(path+".away", path))
	h.restart()
	time.Sleep(50 * time.Millisecond)
	if len(h.openDrives()) != 0 || h.searched(uuid) {
		t.Error("a drive that was closed is open, or looked for, after a take-over")
	}
	_, err = h.openDriveAt(path, uuid, 1, 1)
	check(t, err)
}

// TestL8Epoch: an engine that dies between the drive table and the superblocks
// leaves a drive that its successor can open.
func TestL8Epoch(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.open(request(0, uuid, 0))
	for epoch := uint64(1); epoch < 4; epoch++ {
		h.crash()()
		rec, err := h.table.GetDrive(0)
		check(t, err)
		if rec.Epoch != epoch || rec.Path != path {
			t.Fatalf("the drive table says %+v, want epoch %d", rec, epoch)
		}
		if epoch%2 == 0 {
			rec.Epoch++
			check(t, h.table.PutDrive(0, rec))
			h.takeOver()
			eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
			_, err = h.openDriveAt(path, uuid, epoch+1, epoch+1)
		} else {
			h.takeOver()
			_, err = h.openDriveAt(path, uuid, epoch, epoch+1)
		}
		check(t, err)
	}
}

// TestDriveTable: what cannot be remembered is refused, and says what to do.
func TestDriveTable(t *testing.T) {
	h := newHost(t)
	path, uuid := h.enrolled(h.dir)
	long := path
	for len(long) <= volatile.MaxDrivePath {
		long = strings.Replace(long, "/dev/", "/dev/./././././", 1)
	}
	_, err := h.openDriveAt(long, uuid, 1, 1)
	wantCode(t, err, ipc.CodeInvalid)
	if err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a path of %d bytes: %v", len(long), err)
	}
	var all []string
	for range volatile.DriveSlots {
		_, uuid := h.drive(h.dir)
		all = append(all, uuid)
	}
	_, err = h.openDriveAt(path, uuid, 1, 1)
	wantCode(t, err, ipc.CodeBusy)
	if err == nil || !strings.Contains(err.Error(), "64 drives") {
		t.Errorf("a drive too many: %v", err)
	}
	_, err = h.closeDriveByID(all[17])
	check(t, err)
	_, err = h.openDriveAt(path, uuid, 1, 1)
	check(t, err)
	h.restart()
	eventually(t, "all drives", func() bool { return len(h.openDrives()) == volatile.DriveSlots })
}
