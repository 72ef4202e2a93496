package drive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// EnrollOptions say whose a drive becomes.
type EnrollOptions struct {
	Node, UUID ID
	Epoch      uint64
	// Force overrides the findings that may be, if Confirm is what
	// [Inspection].Confirm asks for.
	Force   bool
	Confirm string
}

// ErrRefused is wrapped by errors about a drive that must not be enrolled.
var ErrRefused = errors.New("enrolment refused")

// A RefusedError lists everything that speaks against an enrolment, at once. It
// unwraps to [ErrRefused].
type RefusedError struct {
	Path     string
	Findings []Finding // those that refuse
	Hint     string    // what was wrong with the confirmation, if anything
}

func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s was not enrolled, nothing was changed:", e.Path)
	for _, f := range e.Findings {
		b.WriteString("\n  " + f.Text)
	}
	if e.Hint != "" {
		b.WriteString("\n  " + e.Hint)
	}
	return b.String()
}

// Unwrap returns [ErrRefused].
func (e *RefusedError) Unwrap() error { return ErrRefused }

// lockPatience is how long a lock is waited for that others take only in
// passing: udev, when it probes a device (systemd.io/BLOCK_DEVICE_LOCKING), and
// Inspect.
const lockPatience = time.Second

// Enroll makes the drive at path a drive of a node: it takes the fence, inspects
// again under it, wipes the first and the last MiB, writes both superblocks, and
// reads all of that back. What it refuses it leaves as it was ([RefusedError]).
//
// An enrolment that was interrupted may be repeated with the same node, UUID and
// epoch. One with another UUID or epoch is refused on a drive of this node,
// even with Force: it may hold leases.
func Enroll(path string, o EnrollOptions) (Info, error) {
	if o.Node == (ID{}) || o.UUID == (ID{}) {
		return Info{}, fmt.Errorf("enrolling %s: no node or drive id was given", path)
	}
	// First without the fence, so that everything is said at once even if others
	// hold it.
	ins, err := Inspect(path)
	if err != nil {
		return Info{}, err
	}
	if err := o.judge(path, ins); err != nil {
		return Info{}, err
	}
	t, err := thisHost.fence(context.Background(), path, lockPatience)
	if err != nil {
		return Info{}, fmt.Errorf("enrolling drive: %w", err)
	}
	defer t.close()
	if err := o.judge(path, t.inspect(true)); err != nil {
		return Info{}, err
	}
	sb, err := layout(t.size)
	if err != nil {
		return Info{}, fmt.Errorf("enrolling %s: %w", path, err)
	}
	sb.Node, sb.UUID, sb.Epoch = o.Node, o.UUID, o.Epoch
	if err := t.initialise(&sb); err != nil {
		return Info{}, fmt.Errorf("enrolling drive: %w; it may be partly wiped, enroll it again or replace it", err)
	}
	info := t.info(false, "")
	info.add(sb)
	return info, nil
}

// judge returns a RefusedError unless the findings let o go on.
func (o *EnrollOptions) judge(path string, ins Inspection) error {
	confirmed := o.Force && o.Confirm == ins.Confirm
	e := &RefusedError{Path: path}
	typed := false // some finding would have gone with the right confirmation
	for _, f := range ins.Findings {
		if f.Code == CodeEnrolled && ins.Info.Node == o.Node {
			if ins.Info.UUID == o.UUID && ins.Info.Epoch == o.Epoch {
				continue // this very enrolment, again
			}
			f.Force = false
			f.Text = fmt.Sprintf("%s is already drive %v of this node (epoch %d) and may hold leases, so it is not enrolled again, even with --force; if the daemon does not list it, start it with the state folder that it belongs to",
				path, ins.Info.UUID, ins.Info.Epoch)
		}
		if f.Refuse && !(f.Force && confirmed) {
			e.Findings = append(e.Findings, f)
			typed = typed || f.Force
		}
	}
	if len(e.Findings) == 0 {
		return nil
	}
	if typed && o.Force {
		e.Hint = fmt.Sprintf("--force was given with %q, but %s goes by %q", o.Confirm, path, ins.Confirm)
	}
	return e
}

// initialise wipes both ends and writes the superblocks. Copy B is on the medium
// before copy A is written: whoever finds a copy A finds a wiped drive.
func (t *target) initialise(sb *Superblock) error {
	// The last, partial block is too small to be used, but not for a backup GPT.
	end := t.size &^ int64(t.logical-1)
	zeros := aligned(margin)
	for _, off := range []int64{0, end - margin} {
		if err := t.write(zeros, off); err != nil {
			return err
		}
	}
	if err := t.sync(); err != nil {
		return err
	}
	for _, which := range []int{copyB, copyA} {
		if err := t.writeSuperblock(sb, which); err != nil {
			return err
		}
	}
	return t.verify(sb, end)
}

// writeSuperblock writes one copy and waits until it is on the medium.
func (t *target) writeSuperblock(sb *Superblock, which int) error {
	b := aligned(superblockSize)
	sb.encode(b, which)
	if err := t.write(b, offsetOf(which, sb.Size)); err != nil {
		return fmt.Errorf("writing superblock copy %s: %w", copyNames[which], err)
	}
	return t.sync()
}

// verify reads back what initialise wrote: an answer of success is not enough.
func (t *target) verify(sb *Superblock, end int64) error {
	want := make([]byte, margin)
	for which, off := range []int64{0, end - margin} {
		clear(want)
		at := offsetOf(which, sb.Size) - off
		sb.encode(want[at:at+superblockSize], which)
		got, err := t.read(off, margin)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s does not hold what was written to it: the MiB at %d reads differently", t.path, off)
		}
	}
	return nil
}
