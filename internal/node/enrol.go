package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/proof"
)

// EnrollRequest names a drive to take into use.
type EnrollRequest struct {
	Path    string
	Plan    bool   // inspect and say what is there; change nothing
	Force   bool   // go on in spite of findings that force may override
	Confirm string // with Force: the serial, or the path, typed again
}

// Enrolment says what was found and done.
type Enrolment struct {
	Drive    Drive // enrolled, or as it would be
	Findings []ipc.Finding
	Enrolled bool
}

// firstEpoch is what enrolment writes.
const firstEpoch = 1

// Enroll inspects a drive and, unless only a plan is wanted, takes it into use:
// the journal notes the intent, the engine writes the superblocks, the journal
// has the drive. What is cut off in between is decided by what the superblocks
// turn out to say. A refusal is an [*Error] that carries what was found.
func (n *Node) Enroll(ctx context.Context, req EnrollRequest) (Enrolment, error) {
	if !filepath.IsAbs(req.Path) {
		return Enrolment{}, invalid(req.Path, "the path %q is not absolute: the daemon does not know your folder", req.Path)
	}
	req.Path = filepath.Clean(req.Path)
	n.enrolMu.Lock()
	defer n.enrolMu.Unlock()
	if err := n.unused(req.Path); err != nil {
		return Enrolment{}, err
	}
	found, err := n.cfg.Engine.Inspect(ctx, ipc.InspectRequest{Path: req.Path})
	if err != nil {
		return Enrolment{}, fromEngine(req.Path, err, nil)
	}
	out := Enrolment{Drive: showDrive(&drive{j: journal.Drive{Path: req.Path}, info: found.Drive, space: extent.NewAllocator(0)}),
		Findings: found.Findings}
	if req.Plan {
		out.Drive.State = "not enrolled"
		return out, nil
	}
	var id [16]byte
	if _, err := io.ReadFull(n.cfg.Rand, id[:]); err != nil {
		return out, fmt.Errorf("reading randomness for the drive's UUID: %w", err)
	}
	// The caller may leave; what was begun is finished.
	d, err := n.enrol(context.WithoutCancel(ctx), req, hex.EncodeToString(id[:]))
	if err != nil {
		return out, fromEngine(req.Path, err, found.Findings)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	out.Drive, out.Enrolled = n.show(d), true
	return out, nil
}

// unused refuses a path that is a drive's already.
func (n *Node) unused(path string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.taking(); err != nil {
		return err
	}
	for _, d := range n.drives {
		if d.j.Path == path && d.j.State == journal.Enrolling {
			return &Error{Kind: Unavailable, Object: path,
				Text: fmt.Sprintf("the enrolment of %s was cut off (%s) and is being finished", path, d.why), Next: "try again in a moment"}
		}
		if d.j.Path == path {
			return &Error{Kind: Refused, Object: path,
				Text: fmt.Sprintf("%s is enrolled already, as drive %s in state %s", path, d.j.UUID, d.state), Next: "see `vacate drive list`"}
		}
	}
	return nil
}

func (n *Node) enrol(ctx context.Context, req EnrollRequest, uuid string) (*drive, error) {
	salt, err := n.salt()
	if err != nil {
		return nil, err
	}
	j := journal.Drive{UUID: uuid, Path: req.Path, Salt: salt, State: journal.Enrolling}
	if err := n.storeFailed(n.cfg.Store.AddDrive(j)); err != nil {
		return nil, err
	}
	// watchDrives must not take this for an enrolment that was cut off.
	n.recoverMu.Lock()
	defer n.recoverMu.Unlock()
	n.mu.Lock()
	hello := n.hello
	d := newDrive(j)
	n.drives[uuid] = d
	n.mu.Unlock()
	_, err = n.cfg.Engine.Enroll(ctx, ipc.EnrollRequest{Path: req.Path, Node: n.cfg.Store.NodeID(), UUID: uuid,
		Epoch: firstEpoch, Force: req.Force, Confirm: req.Confirm})
	if nothingWritten(err) || codeOf(err) == ipc.CodeNotFound || codeOf(err) == ipc.CodeBusy {
		n.dropDrive(d, err)
		return nil, err
	}
	if err != nil {
		n.noteEnrolling(d, err)
		return nil, err
	}
	if !n.resolveEnrolment(ctx, d, hello.EngineID) {
		n.mu.Lock()
		defer n.mu.Unlock()
		return nil, fmt.Errorf("its superblocks are written, but it could not be opened: %s", d.why)
	}
	return d, nil
}

// resolveEnrolment opens a drive whose superblocks may have been written. Where
// they were, it is enrolled; where they surely were not, it is forgotten.
func (n *Node) resolveEnrolment(ctx context.Context, d *drive, engineID string) bool {
	n.mu.Lock()
	j, told := d.j, d.told
	n.mu.Unlock()
	info, err := n.askOpenDrive(ctx, ipc.DriveOpenRequest{Path: j.Path, Node: n.cfg.Store.NodeID(), UUID: j.UUID,
		Epoch: firstEpoch, NewEpoch: firstEpoch, ForceForward: slices.Contains(n.cfg.ForceForward, j.Path)})
	if nothingWritten(err) {
		n.dropDrive(d, err)
		return false
	}
	if err != nil { // also when nothing is at its path: the superblocks come back with it
		n.noteEnrolling(d, err)
		return false
	}
	// The path stays as it was typed: /dev/disk/by-id/… survives a reboot.
	j.Serial, j.Model, j.Kind = info.Serial, info.Model, info.Kind
	j.ExtentBytes, j.Extents, j.Epoch, j.State = info.ExtentBytes, info.Extents, firstEpoch, journal.Ready
	j.EnrolledAt = n.cfg.Clock().UTC().Round(0)
	if err := n.storeFailed(n.cfg.Store.FinishDrive(j, n.testimony(proof.ENROL, lease.Lease{}))); err != nil {
		n.noteEnrolling(d, err)
		return false
	}
	n.mu.Lock()
	d.j, d.space = j, extent.NewAllocator(j.Extents)
	n.mu.Unlock()
	n.noteDrive(d, info, engineID, told, nil)
	n.cfg.Log.Info("drive enrolled", "drive", j.Path, "uuid", j.UUID, "size_bytes", int64(j.Extents)*j.ExtentBytes)
	return true
}

// nothingWritten reports whether the engine's answer rules out that there are
// superblocks of this enrolment. "Internal" does not: the medium may have failed
// between the two.
func nothingWritten(err error) bool {
	switch codeOf(err) {
	case ipc.CodeMismatch, ipc.CodeInvalid, ipc.CodeRefused:
		return true
	}
	return false
}

// dropDrive forgets a drive whose enrolment did not happen, because of err.
func (n *Node) dropDrive(d *drive, err error) {
	if serr := n.storeFailed(n.cfg.Store.DropDrive(d.j.UUID)); serr != nil {
		n.noteEnrolling(d, serr) // tried again
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.drives, d.j.UUID)
	d.why = err.Error()
}

func (n *Node) noteEnrolling(d *drive, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d.state, d.why = DriveEnrolling, err.Error()
	if codeOf(err) == ipc.CodeNotFound {
		d.state, d.why = DriveMissing, "its enrolment was cut off, and is finished when it is back: "+err.Error()
	}
}

// fromEngine is the engine's answer, for people.
func fromEngine(object string, err error, findings []ipc.Finding) error {
	if errors.Is(err, journal.ErrUnchanged) {
		return &Error{Kind: Unavailable, Object: object, Text: "the journal could not be written, so the drive was not enrolled", Err: err,
			Next: journalNext}
	}
	if errors.Is(err, ipc.ErrGone) {
		return &Error{Kind: Unavailable, Object: object, Text: "the engine ended while it enrolled the drive", Err: err,
			Next: "see `vacate drive list`: what was begun is finished, or undone, by the next engine"}
	}
	kinds := map[string]Kind{ipc.CodeInvalid: Invalid, ipc.CodeNotFound: NotFound, ipc.CodeRefused: Refused,
		ipc.CodeBusy: Refused, ipc.CodeMismatch: Refused}
	if kind, ok := kinds[codeOf(err)]; ok {
		return &Error{Kind: kind, Object: object, Text: err.Error(), Findings: findings}
	}
	return fmt.Errorf("enrolling %s: %w", object, err)
}
