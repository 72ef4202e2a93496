package measure

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vacate/internal/bench"
	"vacate/internal/sys"
)

// A medium is what becomes the drive of a run: a temporary file, or a device.
type medium struct {
	path   string // of the drive
	within string // the folder beneath which the daemon may open drives
	device bool
	size   int64 // bytes of the device
	area   int64 // bytes from the start of the device that are written
	dir    string
}

// newMedium makes the temporary file. Of a device nothing is changed yet.
func newMedium(p *bench.Plan) (*medium, error) {
	if p.Device {
		return &medium{path: p.Path, within: filepath.Dir(p.Path), device: true, size: p.FreeBytes, area: p.AreaBytes}, nil
	}
	// A folder, so that the daemon may open what is in it, and nothing else of the
	// user's.
	dir, err := os.MkdirTemp(p.Path, "vacate-bench-")
	if err != nil {
		return nil, err
	}
	m := &medium{dir: dir, within: dir, path: filepath.Join(dir, "drive")}
	err = os.WriteFile(m.path, nil, 0o600)
	if err == nil {
		err = os.Truncate(m.path, p.AreaBytes)
	}
	if err != nil {
		return nil, errors.Join(err, m.clean())
	}
	return m, nil
}

// clean removes the file, or makes the device read as zeros again, as it did.
// REQUIRES: nobody uses the drive any more.
func (m *medium) clean() error {
	if !m.device {
		return os.RemoveAll(m.dir)
	}
	fd, err := sys.OpenStorage(m.path, sys.ReadWrite|sys.Exclusive)
	if err == nil {
		err = errors.Join(zero(fd, m.size, m.area), sys.CloseFD(fd))
	}
	if err != nil {
		return fmt.Errorf("clearing %s again: %w; it still holds what was measured with, and may be cleared with `blkdiscard --zeroout %s`", m.path, err, m.path)
	}
	return nil
}

// zero clears both ends of a device, where superblocks lie, and the area between.
func zero(fd int, size, area int64) error {
	const unit = 1 << 12 // the largest logical block that a drive may have
	end := size &^ (unit - 1)
	tail := max(area, end-margin) // what has no superblock and was not written
	return errors.Join(sys.ZeroDevice(fd, 0, area), zeroTail(fd, tail, size))
}

func zeroTail(fd int, from, size int64) error {
	const sector = 512 // a device's size is a multiple of its logical block
	if n := (size - from) &^ (sector - 1); n > 0 {
		return sys.ZeroDevice(fd, from, n)
	}
	return nil
}
