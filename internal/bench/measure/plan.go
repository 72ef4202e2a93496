// Package measure does what `vacate bench` asks for: it loads a drive as it is,
// and an encrypted volume on it, in turn, and says what either did.
//
// # It destroys nothing
//
//  1. A folder gets one temporary file, which is removed at the end, also after an
//     interrupt.
//  2. A device is taken only if an enrolment finds nothing in the way, and if all
//     that will be written reads as zeros. At the end it reads as zeros again.
//  3. The volume is a lease of a daemon of its own, which ends with the run.
//  4. Either side has its own part of the drive.
package measure

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"vacate/internal/bench"
	"vacate/internal/drive"
	"vacate/internal/sys"
)

// An Error is a wrong use, or a refusal.
type Error struct {
	Code int // the exit code: 2 wrong usage, 3 not found, 4 refused
	Text string
}

func (e *Error) Error() string { return e.Text }

// CommandExit is the exit code.
func (e *Error) CommandExit() int { return e.Code }

const (
	margin  = 1 << 20  // bytes of a drive before the first extent, and behind the last (docs/spec/superblock.md)
	extent  = 64 << 20 // bytes: the largest there are
	slack   = 64 << 20 // bytes of a file system that are left free
	assumed = 500e6    // bytes a second: a guess, for times that are shown beforehand
)

// Plan looks at what lies at o.Path and says what a run would do. It changes
// nothing. A device is read as far as it would be written.
func Plan(o bench.Options) (bench.Plan, error) {
	if err := check(o); err != nil {
		return bench.Plan{}, err
	}
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return bench.Plan{}, err
	}
	st, err := sys.Stat(path)
	if err != nil {
		return bench.Plan{}, &Error{Code: 3, Text: fmt.Sprintf("%v: give a folder on the drive that is to be measured, or an empty block device", err)}
	}
	p := bench.Plan{Path: path, Each: o.Each, SpanBytes: o.Span &^ (bench.MinSpan/16 - 1), Findings: []bench.Finding{}}
	switch st.Type {
	case sys.Directory:
		err = planFolder(&p)
	case sys.BlockDevice:
		p.Device = true
		err = planDevice(&p)
	default:
		err = &Error{Code: 2, Text: fmt.Sprintf("%s is neither a folder nor a block device: give a folder on the drive that is to be measured, or an empty block device", path)}
	}
	p.Takes = takes(&p)
	return p, err
}

func check(o bench.Options) error {
	switch {
	case o.Span < bench.MinSpan || o.Span > bench.MaxSpan:
		return &Error{Code: 2, Text: fmt.Sprintf("a size of %d bytes cannot be measured: give 16MiB to 16TiB", o.Span)}
	case o.Each < bench.MinEach || o.Each > bench.MaxEach:
		return &Error{Code: 2, Text: fmt.Sprintf("%v for each measurement: give 0.1 to 3600 seconds", o.Each)}
	}
	return nil
}

// area is how much of a drive a run uses, from its start: what either side has,
// in whole extents.
func area(span int64) int64 { return margin + 2*((span+extent-1)&^(extent-1)) }

func refuse(p *bench.Plan, code, format string, args ...any) {
	p.Findings = append(p.Findings, bench.Finding{Code: code, Text: fmt.Sprintf(format, args...), Refuse: true})
}

func planFolder(p *bench.Plan) error {
	free, fs, err := sys.FreeSpace(p.Path)
	if err != nil {
		return err
	}
	p.Kind, p.FreeBytes, p.AreaBytes = "folder on "+fs, free, area(p.SpanBytes)+margin
	if err := sys.Writable(p.Path); err != nil {
		refuse(p, "not-writable", "%s cannot be written: %v; give another folder", p.Path, err)
	}
	// The file is sparse: only what the two sides use takes space.
	if need := 2*p.SpanBytes + slack; need > free {
		refuse(p, "no-space", "%s has %d bytes free, and %d are needed: give a smaller --size", p.Path, free, need)
	}
	if fs == "tmpfs" || fs == "ramfs" {
		p.Findings = append(p.Findings, bench.Finding{Code: "note", Text: p.Path + " is memory, not a drive: what is measured is the processor"})
	}
	return nil
}

func planDevice(p *bench.Plan) error {
	ins, err := drive.Inspect(p.Path)
	if err != nil {
		return err
	}
	i := ins.Info
	p.Kind, p.Model, p.FreeBytes = i.Kind, i.Model, i.Size
	for _, f := range ins.Findings {
		// Of --force, which an enrolment may offer, there is none here.
		p.Findings = append(p.Findings, bench.Finding{Code: f.Code, Text: plain(f, ins.Confirm), Refuse: f.Refuse})
	}
	room := (i.Size - 2*margin) / 2
	p.SpanBytes = min(p.SpanBytes, room&^(bench.MinSpan/16-1))
	p.AreaBytes = min(area(p.SpanBytes), i.Size&^(1<<12-1))
	if p.SpanBytes < bench.MinSpan {
		refuse(p, "too-small", "%s has %d bytes: at least %d are needed", p.Path, i.Size, 2*bench.MinSpan+2*margin)
	}
	if len(p.Refused()) > 0 {
		return nil
	}
	at, err := firstByte(p.Path, p.AreaBytes)
	switch {
	case err != nil:
		return err
	case at >= 0:
		refuse(p, "data", "%s holds data: the bytes at %d are not zeros, and this command overwrites nothing; if nothing of it is needed, `blkdiscard --zeroout %s` clears it", p.Path, at, p.Path)
	}
	return nil
}

// plain is a finding's text without the way to override it.
func plain(f drive.Finding, confirm string) string {
	if !f.Force {
		return f.Text
	}
	for _, what := range []string{"path", "serial number"} {
		hint := fmt.Sprintf("; to destroy that, use --force and type the %s %q", what, confirm)
		if n := len(f.Text) - len(hint); n > 0 && f.Text[n:] == hint {
			return f.Text[:n]
		}
	}
	return f.Text
}

// firstByte returns where the first bytes that are not zeros lie within the first
// n of a device, to a block of 4096; −1 if there are none.
func firstByte(path string, n int64) (at int64, err error) {
	fd, err := sys.OpenStorage(path, sys.Direct)
	if err != nil {
		return 0, err
	}
	defer sys.CloseFD(fd) //nolint:errcheck // it was only read
	buf, err := sys.MapAnonymous(1 << 20)
	if err != nil {
		return 0, err
	}
	defer sys.Unmap(buf) //nolint:errcheck // as above
	zeros := make([]byte, 4096)
	for off := int64(0); off < n; {
		got, errno := sys.Pread(fd, buf[:min(int64(len(buf)), n-off)], off)
		if errno == 0 && got == 0 {
			return -1, nil // the end
		}
		if errno != 0 {
			return 0, fmt.Errorf("reading %s at %d: %w", path, off, errno)
		}
		for i := 0; i < got; i += len(zeros) {
			if part := buf[i:min(i+len(zeros), got)]; !bytes.Equal(part, zeros[:len(part)]) {
				return off + int64(i), nil
			}
		}
		off += int64(got)
	}
	return -1, nil
}

// takes guesses how long a run takes.
func takes(p *bench.Plan) time.Duration {
	_, total := steps(p)
	return total
}

// ErrInterrupted is the error of a run that was ended from outside. What it had
// made is gone.
var ErrInterrupted = errors.New("interrupted; what it had made was removed")
