package nbdctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultPatience is what the driver gives a device at first.
const DefaultPatience = 30 * time.Second

// SetPatience has the driver look after a request each time it has taken so long
// (queue/io_timeout): see the package. It holds for requests to come, and stays with
// the number, whatever device has it next.
func (c *Control) SetPatience(index int, d time.Duration) error {
	// Not os.WriteFile, which would make what is not there.
	f, err := os.OpenFile(c.file(index, "queue/io_timeout"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	_, err = f.WriteString(strconv.FormatInt(d.Milliseconds(), 10))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	return nil
}

// Patience is what SetPatience has set.
func (c *Control) Patience(index int) (time.Duration, error) {
	ms, err := c.number(index, "queue/io_timeout")
	return time.Duration(ms) * time.Millisecond, err
}

// Size is a device's size in bytes, as its users see it.
func (c *Control) Size(index int) (int64, error) {
	sectors, err := c.number(index, "size")
	return sectors * 512, err
}

func (c *Control) number(index int, name string) (int64, error) {
	b, err := os.ReadFile(c.file(index, name))
	if err != nil {
		return 0, fmt.Errorf("nbd: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("nbd: reading %s: %w", c.file(index, name), err)
	}
	return n, nil
}

func (c *Control) backend(index int) (string, error) {
	b, err := os.ReadFile(c.file(index, "backend"))
	return strings.TrimSuffix(string(b), "\n"), err
}

// List returns the marks of all devices that have one, by number. A device that was
// disconnected is among them for as long as someone has it open.
func (c *Control) List() (map[int]string, error) {
	files, err := filepath.Glob(filepath.Join(c.sysfs, "nbd*", "backend"))
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	marks := make(map[int]string, len(files))
	for _, f := range files {
		index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(f)), "nbd"))
		if err != nil {
			continue // a partition's, or not the driver's
		}
		switch mark, err := c.backend(index); {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV): // it has gone meanwhile
		case err != nil:
			return nil, fmt.Errorf("nbd: %w", err)
		case mark != "":
			marks[index] = mark
		}
	}
	return marks, nil
}
