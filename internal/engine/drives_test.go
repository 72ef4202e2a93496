package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"vacate/internal/drive"
	"vacate/internal/ipc"
)

// TestDriveOpenErrors: each reason not to open a drive has the code that control
// branches on, and leaves nothing open.
func TestDriveOpenErrors(t *testing.T) {
	h := newHost(t)
	path, uuid := h.enrolled(h.dir)
	blank, blankID := h.newFile(h.dir)
	damaged, damagedID := h.enrolled(h.dir)
	f, err := os.OpenFile(damaged, os.O_WRONLY, 0)
	check(t, err)
	junk := []byte("VACATESB, but not really")
	_, err1 := f.WriteAt(junk, 100)
	_, err2 := f.WriteAt(junk, driveSize-4096+100)
	check(t, errors.Join(err1, err2, f.Close()))
	cut, cutID := h.enrolled(h.dir)
	check(t, os.Truncate(cut, driveSize/2))
	const other = "ffffffffffffffffffffffffffffffff"
	for _, tt := range []struct {
		name string
		req  ipc.DriveOpenRequest
		code string
	}{
		{"node id", ipc.DriveOpenRequest{Path: path, Node: "x", UUID: uuid, Epoch: 1, NewEpoch: 1}, ipc.CodeInvalid},
		{"drive id", ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: "", Epoch: 1, NewEpoch: 1}, ipc.CodeInvalid},
		{"no such path", ipc.DriveOpenRequest{Path: path + "x", Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 1}, ipc.CodeNotFound},
		{"folder", ipc.DriveOpenRequest{Path: h.dir, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 1}, ipc.CodeInternal},
		{"not enrolled", ipc.DriveOpenRequest{Path: blank, Node: nodeID, UUID: blankID, Epoch: 1, NewEpoch: 1}, ipc.CodeMismatch},
		{"another drive", ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: other, Epoch: 1, NewEpoch: 1}, ipc.CodeMismatch},
		{"another node", ipc.DriveOpenRequest{Path: path, Node: other, UUID: uuid, Epoch: 1, NewEpoch: 1}, ipc.CodeMismatch},
		{"epoch ahead", ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 3, NewEpoch: 3}, ipc.CodeMismatch},
		{"epoch behind", ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 0, NewEpoch: 0}, ipc.CodeMismatch},
		{"epoch that jumps", ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 3}, ipc.CodeInternal},
		{"damaged", ipc.DriveOpenRequest{Path: damaged, Node: nodeID, UUID: damagedID, Epoch: 1, NewEpoch: 1}, ipc.CodeMismatch},
		{"shrunk", ipc.DriveOpenRequest{Path: cut, Node: nodeID, UUID: cutID, Epoch: 1, NewEpoch: 1}, ipc.CodeMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := files(t)
			_, err := do[ipc.DriveInfo](h, ipc.MethodDriveOpen, tt.req, nil)
			wantCode(t, err, tt.code)
			h.mu.Lock()
			n := len(h.Engine.drives)
			h.mu.Unlock()
			if n != 0 || files(t) != before {
				t.Errorf("%d drives, %d descriptors, %d before", n, files(t), before)
			}
		})
	}
	_, err = h.openDriveAt(path, uuid, 1, 1)
	check(t, err)
}

// TestDriveRenew: opening a drive that is open checks its epoch and writes the
// new one, while its leases go on.
func TestDriveRenew(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.open(request(0, uuid, 0))
	for _, tt := range []struct{ epoch, next uint64 }{{1, 2}, {2, 2}, {2, 3}, {4, 4}} { // 4: it has 3, whose writer was not done
		info, err := h.openDriveAt(path, uuid, tt.epoch, tt.next)
		if err != nil || info.Epoch != tt.next {
			t.Errorf("renewing epoch %d to %d: %+v, %v", tt.epoch, tt.next, info, err)
		}
	}
	_, err := h.openDriveAt(path, uuid, 2, 2)
	wantCode(t, err, ipc.CodeMismatch)
	if len(h.openDrives()) != 1 {
		t.Error("a renewal that failed closed the drive")
	}
	ins, err := do[ipc.Inspection](h, ipc.MethodInspect, ipc.InspectRequest{Path: path}, nil)
	if err != nil || ins.Drive.Epoch != 4 || ins.Drive.UUID != uuid {
		t.Errorf("the drive says %+v, %v", ins, err)
	}
}

// TestDriveClose: a drive that a lease uses stays open, whatever state the lease
// is in; then it closes, and can be opened again.
func TestDriveClose(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	_, err := h.closeDriveByID(strings.Repeat("f", 32))
	wantCode(t, err, ipc.CodeNotFound)
	req := request(0, uuid, 0)
	h.open(req)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeBusy)
	_, err = h.close(req.Lease)
	check(t, err)
	h.drained(req.Lease)
	_, err = h.closeDriveByID(uuid)
	check(t, err)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeNotFound)
	f, _ := h.listen()
	_, err = do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, req, f)
	wantCode(t, err, ipc.CodeNotFound)
	_, err = h.openDriveAt(path, uuid, 1, 2)
	check(t, err)
	h.open(req)
}

// TestDriveBusy: while a drive is being closed it takes no call and no lease.
func TestDriveBusy(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	d, err := h.reserveUnused(t.Context(), uuid)
	check(t, err)
	f, _ := h.listen()
	_, err = do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, request(0, uuid, 0), f)
	wantCode(t, err, ipc.CodeNotFound)
	_, err = h.openDriveAt(path, uuid, 1, 1)
	wantCode(t, err, ipc.CodeBusy)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeBusy)
	h.settleDrive(uuid, d, d.drive)

	d, err = h.reserveDrive(t.Context(), uuid) // renewing
	check(t, err)
	_, err = h.closeDriveByID(uuid)
	wantCode(t, err, ipc.CodeBusy)
	h.open(request(0, uuid, 0)) // its extents stay what they are
	h.settleDrive(uuid, d, d.drive)
}

// TestDriveCloseRefused: a drive that would not close stays the engine's.
func TestDriveCloseRefused(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	q, err := h.openDrives()[uuid].NewQueue(1)
	check(t, err)
	if _, err := h.closeDriveByID(uuid); !errors.Is(err, drive.ErrQueues) {
		t.Errorf("closing with a queue open: %v, want ErrQueues", err)
	}
	check(t, q.Close())
	h.open(request(0, uuid, 0))
}

// TestEnrollErrors: what is refused, and what is in use.
func TestEnrollErrors(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	small := path + "small"
	check(t, os.WriteFile(small, make([]byte, 1<<20), 0o600))
	foreign, _ := h.newFile(h.dir)
	check(t, os.WriteFile(foreign, append(make([]byte, 32769), "CD001"...), 0o600)) // ISO 9660
	check(t, os.Truncate(foreign, driveSize))
	for _, tt := range []struct {
		req  ipc.EnrollRequest
		code string
	}{
		{ipc.EnrollRequest{Path: path, Node: "no", UUID: uuid, Epoch: 1}, ipc.CodeInvalid},
		{ipc.EnrollRequest{Path: path, Node: nodeID, UUID: strings.Repeat("a", 32), Epoch: 1}, ipc.CodeRefused},
		{ipc.EnrollRequest{Path: small, Node: nodeID, UUID: strings.Repeat("b", 32), Epoch: 1}, ipc.CodeRefused},
		{ipc.EnrollRequest{Path: foreign, Node: nodeID, UUID: strings.Repeat("c", 32), Epoch: 1}, ipc.CodeRefused},
		{ipc.EnrollRequest{Path: path + "none", Node: nodeID, UUID: uuid, Epoch: 1}, ipc.CodeNotFound},
	} {
		_, err := do[ipc.DriveInfo](h, ipc.MethodEnroll, tt.req, nil)
		wantCode(t, err, tt.code)
	}
	_, err := do[ipc.Inspection](h, ipc.MethodInspect, ipc.InspectRequest{Path: path + "none"}, nil)
	wantCode(t, err, ipc.CodeInvalid)
}

// TestApart: who gives up does not wait, and what is under way goes on.
func TestApart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	goOn, done := make(chan struct{}), make(chan struct{})
	cancel()
	_, err := apart(ctx, func() (*ipc.Empty, error) {
		<-goOn
		close(done)
		return nil, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(goOn)
	<-done
}
