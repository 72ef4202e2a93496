package devices

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// spare has the kernel use one request less of each queue of a ublk device than there
// are. The driver notices that its server has ended by the commands that it
// has of it. Before Linux 6.15 it waits for ever when one queue has none, since each of
// its requests is with the server: then nobody can take the device over, nor remove it
// (drivers/block/ublk_drv.c, ublk_uring_cmd_cancel_fn and ublk_wait_tagset_rqs_idle).
//
// A scheduler would have requests of its own, and this bound be about those.
func (h host) spare(name string) error {
	queue := filepath.Join(h.sys, "block", name, "queue")
	for _, set := range []struct{ file, value string }{{"scheduler", "none"}, {"nr_requests", strconv.Itoa(ublkDepth - 1)}} {
		f, err := os.OpenFile(filepath.Join(queue, set.file), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(set.value)
			err = errors.Join(err, f.Close())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("setting the %s of %s to %s: %w", set.file, name, set.value, err)
		}
	}
	return nil
}
