package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vacate/internal/plant"
	"vacate/internal/sys"
)

// The fence of a drive proves that no earlier engine's I/O on it is still in
// flight (law 1):
//
//  1. It is an exclusive flock on the open file description through which all
//     I/O goes; on block devices also an exclusive open, which keeps out mounts,
//     other drivers, and daemons that use another name of the device.
//  2. Both end with the last use of the description. A killed process is one
//     user; each I/O that the kernel has accepted is another.
//  3. So whoever holds both may read the superblock, and nobody before.

// ErrFenced is wrapped by errors about a fence that others hold.
var ErrFenced = errors.New("the drive is in use")

// A FenceError says that a drive's fence could not be had in time. It unwraps
// to [ErrFenced].
type FenceError struct {
	Path    string
	Waited  time.Duration
	Holders []string // processes and mounts, as far as they can be found
}

func (e *FenceError) Error() string {
	who := by(e.Holders)
	if who == "" {
		who = "; no running process is seen to hold it, so I/O of one that has ended may still be in flight, or it is in another container"
	}
	return fmt.Sprintf("drive %s is in use after %v%s: stop what uses it, and try again", e.Path, e.Waited.Round(time.Millisecond), who)
}

// Unwrap returns [ErrFenced].
func (e *FenceError) Unwrap() error { return ErrFenced }

// eager is how long a fence is asked for every millisecond: what a predecessor
// that was killed has in flight seldom takes longer, and guests wait meanwhile.
const eager = 250 * time.Millisecond

// fence opens path for reading and writing and takes its fence, for which it
// waits at most wait. Nothing is read or written before it is held.
func (h host) fence(ctx context.Context, path string, wait time.Duration) (*target, error) {
	start := time.Now()
	mode := sys.ReadWrite | sys.Exclusive
	if plant.Is(plant.FenceOff) {
		mode = sys.ReadWrite
	}
	pause := time.Millisecond
	for refused := 0; ; refused++ {
		t, err := h.open(path, mode)
		switch {
		case errors.Is(err, syscall.EBUSY):
		case err != nil:
			return nil, err
		case t.fd < 0:
			return nil, &os.PathError{Op: "opening a " + t.kind + " as drive", Path: path, Err: syscall.ENOTBLK}
		default:
			errno := sys.LockExclusive(t.fd)
			if errno == 0 || plant.Is(plant.FenceOff) {
				if err := t.settle(); err != nil {
					t.close()
					return nil, err
				}
				t.refused = refused
				return t, nil
			}
			t.close()
			if errno != syscall.EWOULDBLOCK {
				return nil, &os.PathError{Op: "flock", Path: path, Err: errno}
			}
		}
		waited := time.Since(start)
		if waited >= wait {
			return nil, &FenceError{Path: path, Waited: waited, Holders: h.holdersOf(path)}
		}
		if waited > eager {
			pause = min(2*pause, 50*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the fence of drive %s: %w", path, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// holdersOf says, as well as it can, who has path in use.
func (h host) holdersOf(path string) []string {
	st, err := h.stat(path)
	if err != nil {
		return nil
	}
	t := &target{path: path, host: h, fd: -1, stat: st}
	if st.Type == sys.BlockDevice {
		t.dir = h.blockDir(st.Major, st.Minor)
	}
	return t.holding()
}

// holding names mounts, devices and processes that use t. It is for messages:
// what it cannot see it leaves out.
func (t *target) holding() []string {
	var who []string
	if t.dir != "" {
		for _, m := range t.host.mounts(numbers(t.dir)) {
			who = append(who, "the file system at "+m)
		}
		who = append(who, holders(t.dir)...)
	}
	pids := t.host.lockers(t.stat)
	if len(pids) == 0 && t.stat.Type == sys.BlockDevice {
		pids = t.host.openers(t.real())
	}
	for _, pid := range pids {
		name := attr(t.host.path("proc", strconv.Itoa(pid)), "comm")
		if name == "" {
			who = append(who, fmt.Sprintf("process %d, which has ended: its I/O may still be in flight", pid))
			continue
		}
		who = append(who, fmt.Sprintf("process %d (%s)", pid, printable(name)))
	}
	return unique(who)
}

// lockers returns the processes that hold a flock on what st describes, from
// /proc/locks (proc_locks(5)).
func (h host) lockers(st sys.FileStat) []int {
	b, err := os.ReadFile(h.path("proc/locks"))
	if err != nil {
		return nil
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != st.LockID() {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// openers returns the processes that have a path open, this one aside.
func (h host) openers(path string) []int {
	links, err := filepath.Glob(h.path("proc/[0-9]*/fd/*"))
	if err != nil {
		return nil
	}
	seen := make(map[int]bool)
	var pids []int
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || to != path {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(l))))
		if err == nil && pid != os.Getpid() && !seen[pid] {
			seen[pid] = true
			pids = append(pids, pid)
		}
	}
	return pids
}
