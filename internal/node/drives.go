package node

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
)

// A DriveState says whether a drive takes leases.
type DriveState string

// The states of a drive. A lease's space on a drive that is not ready is kept.
const (
	DriveReady     DriveState = "ready"
	DriveEnrolling DriveState = "enrolling" // its superblocks may not be written
	DriveMissing   DriveState = "missing"   // nothing is at its path
	DriveBusy      DriveState = "busy"      // someone else holds its fence, or it did not answer in time
	DriveFailed    DriveState = "failed"    // it answers with errors
	DriveLost      DriveState = "lost"      // it may have lost completed writes; opened anew when its leases are gone
	DriveRefused   DriveState = "refused"   // what is there does not belong to this journal, or is damaged
)

// drive is one drive of the journal. Node.mu guards it.
type drive struct {
	j     journal.Drive
	info  ipc.DriveInfo // as the engine saw it last
	state DriveState
	why   string // where it is not ready
	lost  string // why its leases end; empty: they do not
	told  int    // how often its loss was told of
	fence string // the engine that has opened it, and so holds its fence; or empty
	space *extent.Allocator
}

func newDrive(j journal.Drive) *drive {
	d := &drive{j: j, state: DriveMissing, why: "it was not opened yet", space: extent.NewAllocator(j.Extents)}
	if j.State == journal.Enrolling {
		d.state = DriveEnrolling
	}
	return d
}

// rooms are the drives that a lease may be placed on: all that are ready, or the
// one that is named by path, UUID or serial. REQUIRES: n.mu is held.
func (n *Node) rooms(name string) ([]room, error) {
	if name != "" {
		d, err := n.findDrive(name)
		if err != nil {
			return nil, err
		}
		if d.state != DriveReady {
			return nil, &Error{Kind: Refused, Object: d.j.Path,
				Text: fmt.Sprintf("drive %s is %s: %s", d.j.Path, d.state, d.why), Next: "name another drive, or none"}
		}
		return []room{d.room()}, nil
	}
	var rooms []room
	for _, d := range n.drives {
		if d.state == DriveReady {
			rooms = append(rooms, d.room())
		}
	}
	return rooms, nil
}

func (d *drive) room() room {
	return room{uuid: d.j.UUID, path: d.j.Path, extentBytes: d.j.ExtentBytes, space: d.space}
}

// findDrive finds a drive by UUID, path or serial. REQUIRES: n.mu is held.
func (n *Node) findDrive(name string) (*drive, error) {
	if d := n.drives[name]; d != nil {
		return d, nil
	}
	var found []*drive
	for _, d := range n.drives {
		if d.j.Path == name || d.j.Serial == name {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, &Error{Kind: NotFound, Object: name, Text: fmt.Sprintf("there is no drive %q here", name),
			Next: "see `vacate drive list`"}
	}
	return nil, &Error{Kind: Refused, Object: name, Text: fmt.Sprintf("%d drives have the serial or path %q", len(found), name),
		Next: "name one by its UUID, see `vacate drive list`"}
}

// openDrives has the engine open every drive that it has not opened yet, all at
// once, and returns what went wrong without being a drive's fault.
//
// Epochs: the journal writes the next epoch as an intent, the engine writes it
// to the superblocks, the journal confirms it. A journal that was put back from a
// copy, or a drive from an image, disagrees with the other and is refused.
func (n *Node) openDrives(ctx context.Context, engineID string) error {
	n.mu.Lock()
	var todo []*drive
	var uuids []string // those that need an intent
	for _, d := range n.drives {
		if d.fence == engineID {
			continue
		}
		todo = append(todo, d)
		if d.j.State == journal.Ready && d.j.Next == 0 {
			uuids = append(uuids, d.j.UUID)
		}
	}
	n.mu.Unlock()
	slices.Sort(uuids) // the order of the map is not the order of operations
	slices.SortFunc(todo, func(a, b *drive) int { return compareUUID(a, b) })

	var problem error
	if len(uuids) > 0 {
		// Without the intent, drives are opened at their old epoch: closing must go
		// on with a full state folder, too.
		if problem = n.storeFailed(n.cfg.Store.IntendEpochs(uuids)); problem == nil {
			n.mu.Lock()
			for _, uuid := range uuids {
				n.drives[uuid].j.Next = n.drives[uuid].j.Epoch + 1
			}
			n.mu.Unlock()
		}
	}
	var wg sync.WaitGroup
	opened := make([]bool, len(todo))
	for i, d := range todo {
		wg.Go(func() { opened[i] = n.openDrive(ctx, d, engineID, slices.Contains(uuids, d.j.UUID)) })
	}
	wg.Wait()

	var confirm []string
	n.mu.Lock()
	for i, d := range todo {
		if opened[i] && d.j.Next != 0 {
			confirm = append(confirm, d.j.UUID)
		}
	}
	n.mu.Unlock()
	if len(confirm) > 0 {
		if err := n.storeFailed(n.cfg.Store.ConfirmEpochs(confirm)); err != nil {
			return err // the superblocks may have Next, and the journal says so
		}
		n.mu.Lock()
		for _, uuid := range confirm {
			d := n.drives[uuid]
			d.j.Epoch, d.j.Next = d.j.Next, 0
		}
		n.mu.Unlock()
	}
	return problem
}

func compareUUID(a, b *drive) int {
	if a.j.UUID < b.j.UUID {
		return -1
	}
	return 1
}

// openDrive opens one drive and notes how that went. intended: the next epoch
// was written just now, so that the superblocks cannot have it yet.
func (n *Node) openDrive(ctx context.Context, d *drive, engineID string, intended bool) bool {
	n.mu.Lock()
	j, told := d.j, d.told
	n.mu.Unlock()
	if j.State == journal.Enrolling {
		return n.resolveEnrolment(ctx, d, engineID)
	}
	req := ipc.DriveOpenRequest{Path: j.Path, Node: n.cfg.Store.NodeID(), UUID: j.UUID, Epoch: j.Epoch, NewEpoch: j.Epoch,
		ForceForward: slices.Contains(n.cfg.ForceForward, j.Path)}
	if j.Next != 0 {
		req.NewEpoch = j.Next
		if !intended {
			req.Epoch = j.Next
		}
	}
	info, err := n.askOpenDrive(ctx, req)
	if err == nil && (info.Extents != j.Extents || info.ExtentBytes != j.ExtentBytes) {
		err = &ipc.RemoteError{Code: ipc.CodeMismatch, Text: fmt.Sprintf("drive %s has %d extents of %d bytes, the journal says %d of %d",
			j.Path, info.Extents, info.ExtentBytes, j.Extents, j.ExtentBytes)}
	}
	n.noteDrive(d, info, engineID, told, err)
	return err == nil
}

func (n *Node) askOpenDrive(ctx context.Context, req ipc.DriveOpenRequest) (ipc.DriveInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.DriveWait)
	defer cancel()
	return n.cfg.Engine.OpenDrive(ctx, req)
}

// noteDrive notes what came of opening d, which began when its loss had been told
// of so often: what is told meanwhile is of what was opened just now.
func (n *Node) noteDrive(d *drive, info ipc.DriveInfo, engineID string, told int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil && d.told != told {
		d.info, d.fence = info, engineID
		n.lose(d, d.lost)
		return
	}
	if err == nil {
		d.info, d.state, d.why, d.lost, d.fence = info, DriveReady, "", "", engineID
		n.kickLocked()
		return
	}
	state := DriveRefused
	switch codeOf(err) {
	case ipc.CodeLost:
		d.fence = engineID // it is open
		n.lose(d, err.Error())
		return
	case ipc.CodeNotFound:
		state = DriveMissing
	case ipc.CodeBusy, "": // no answer: it may hold the fence, or get it yet
		state = DriveBusy
	case ipc.CodeInternal:
		state = DriveFailed
	}
	if d.state != state || d.why != err.Error() {
		n.cfg.Log.Warn("drive is not ready", "drive", d.j.Path, "state", state, "error", err)
	}
	d.state, d.why, d.fence = state, err.Error(), ""
	n.kickLocked()
}

// watchDrives tries again, until the node ends, to open drives that may come
// back: all that are neither ready nor refused. A busy drive may be one whose
// last requests are about to end, so it is looked at soon.
func (n *Node) watchDrives() {
	var b backoff
	for b.wait(n, nil) {
		n.mu.Lock()
		changed, waiting := n.kick, false
		for _, d := range n.drives {
			waiting = waiting || d.state != DriveReady && d.state != DriveRefused
		}
		n.mu.Unlock()
		if !waiting {
			b = backoff{}
			select {
			case <-changed:
				continue
			case <-n.ctx.Done():
				return
			}
		}
		n.recoverMu.Lock()
		n.retireLost()
		if hello, err := n.cfg.Engine.Hello(n.ctx); err == nil {
			err = n.openDrives(n.ctx, hello.EngineID)
			n.warn(err)
		}
		n.recoverMu.Unlock()
	}
}

// warn remembers what went wrong, for status; nil is all well again.
func (n *Node) warn(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != n.warning && err != nil {
		n.cfg.Log.Warn("recovery is not complete", "error", err)
	}
	n.warning = text
}
